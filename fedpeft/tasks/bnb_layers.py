"""Linear layers over bitsandbytes storage that forked workers can share; imported only where a base is quantised.

The storage, the rounding and the kernels are bitsandbytes's, so a folder stays an ordinary Hugging Face checkpoint. Its
forward passes are not used, because on a CPU (read and measured with 0.50.2):

- ``Linear4bit`` repacks its weight in place in the first evaluation where the CPU has AVX512-BF16. Every worker then
  owns a copy, evaluation rounds otherwise than training does, and training after it has no gradient through the layer.
- ``Linear8bitLt`` rounds activations to 8 bits in evaluation and not in training, and holds each layer's input until
  the backward pass although nothing needs it.
- both overwrite the bias with one of the input's dtype.

Here a weight is dequantised for the moment of a product and thrown away, forward and backward, in training and in
evaluation alike: ``y = x W^T + b`` with ``W = dequantise(stored)``. Nothing that is stored is ever written to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit as Stored4bit
from bitsandbytes.nn.modules import Linear8bitLt as Stored8bit
from torch.nn.functional import linear

Dense = Callable[[torch.dtype], torch.Tensor]


class FrozenProduct(torch.autograd.Function):
    """``x W^T + b`` for a frozen W that exists only while it is multiplied.

    Gradients: ``dx = dy W`` and ``db = sum of dy over all but the last axis``. Neither x nor the dense W is kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, bias: torch.Tensor | None, dense: Dense) -> torch.Tensor:
        """Return the product in the dtype of x.

        Args:
            x: (..., in_features).
            bias: (out_features,) or None.
            dense: gives W, (out_features, in_features), in a dtype.
        """
        return linear(x, dense(x.dtype), bias if bias is None else bias.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the stored weight only."""
        ctx.dense = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x and bias."""
        grad_x = grad @ ctx.dense(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None


class Linear8bitLt(Stored8bit):
    """A linear layer whose rows are int8 with one float32 scale each: ``W[i, j] = stored[i, j] scale[i] / 127``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``, (..., out_features), in the dtype of autocast, else of x."""
        return _product(x, self.bias, self.dense)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return W, (out_features, in_features)."""
        stored: Any = self.weight
        scale: Any = stored.SCB if stored.SCB is not None else self.state.SCB
        weight: torch.Tensor = stored.data.float().mul_(scale.float().div(127.0)[:, None])
        return weight.to(dtype)


class Linear4bit(Stored4bit):
    """A linear layer of 4-bit codes in blocks of 64, whose scales are 8-bit codes in blocks of 256 (QLoRA)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``, (..., out_features), in the dtype of autocast, else of x."""
        return _product(x, self.bias, self.dense)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return W, (out_features, in_features)."""
        stored: Any = self.weight
        return dequantize_4bit(stored.data, stored.quant_state).to(dtype)


def settle_layers(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Give every bitsandbytes layer of a loaded model the forward pass of this module; return how many there are.

    Args:
        model: changed in place.
        dtype: what the 4-bit kernel dequantises to, so that no second conversion is needed.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, Stored8bit):
            module.__class__ = Linear8bitLt
        elif isinstance(module, Stored4bit):
            module.__class__ = Linear4bit
            stored: Any = module.weight
            stored.quant_state.dtype = dtype
        else:
            continue
        count += 1
    _use_as_many_threads_as_torch()
    return count


def _product(x: torch.Tensor, bias: torch.Tensor | None, dense: Dense) -> torch.Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    multiply: Any = FrozenProduct.apply
    product: torch.Tensor = multiply(x.to(dtype), bias, dense)
    return product


def _use_as_many_threads_as_torch() -> None:
    """Bound the kernels' OpenMP threads, which torch's own setting reaches only where both load the same library.

    More than one would compete with the other workers, and a pool that was started before a fork hangs after it.
    """
    library = Path(bitsandbytes.__file__).parent / "libbitsandbytes_cpu.so"
    if library.is_file():
        ctypes.CDLL(str(library)).omp_set_num_threads(torch.get_num_threads())
