"""Modules that stand in for a linear module and put an adapter behind it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional

from fedpeft.methods.peft_tuners.config import BottleneckConfig, CompacterConfig
from fedpeft.methods.placement import ACTIVATIONS, out_features

Activation = Callable[[torch.Tensor], torch.Tensor]


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear module followed by bottleneck adapters: ``h + W_up act(W_down h + b_down) + b_up`` of its output h.

    W_down (k, d) and W_up (d, k) are float32 whatever the base is; W_up and the biases start at zero.

    Args:
        base_layer: the linear module, kept as it is.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.activations: dict[str, Activation] = {}
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())

    def update_layer(self, adapter_name: str, config: BottleneckConfig, rule: nn.Parameter | None = None) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its sizes.
            rule: what adapters of all layers share (Compacter), None for nothing.

        Raises:
            ValueError: an unknown activation.
        """
        size, narrow = out_features(self.get_base_layer()), config.bottleneck_size
        down, up = self.adapters()
        self.activations[adapter_name] = _activation(config.activation)
        down[adapter_name] = self.make_projection(size, narrow, config, rule)
        up[adapter_name] = self.make_projection(narrow, size, config, rule, zero=True)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def make_projection(
        self, num_in: int, num_out: int, config: BottleneckConfig, rule: nn.Parameter | None, *, zero: bool = False
    ) -> nn.Module:
        """Return one projection of an adapter, ``zero`` for one that maps everything to zero."""
        linear = nn.Linear(num_in, num_out, device=self.weight.device, dtype=torch.float32)
        nn.init.zeros_(linear.bias)
        if zero:
            nn.init.zeros_(linear.weight)
        return linear

    def adapters(self) -> tuple[nn.ModuleDict, nn.ModuleDict]:
        """Return the projections down and up, each by adapter name."""
        down, up = (getattr(self, name) for name in self.adapter_layer_names)
        return down, up

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: an adapter with a nonlinearity has no equal weight matrix.

        Raises:
            ValueError: always.
        """
        raise ValueError("bottleneck adapters are not linear: they cannot be merged into the base model")

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the base module's output with the active adapters applied to it, (..., d), in its dtype."""
        output: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        down, up = self.adapters()
        for name in self.active_adapters:
            if name in down:
                hidden = self.activations[name](down[name](_as_input(output)))
                output = output + up[name](hidden).to(output.dtype)
        return output


class CompacterLayer(BottleneckLayer):
    """A linear module followed by adapters whose projections are PHM layers."""

    adapter_layer_names = ("compacter_down", "compacter_up")

    def make_projection(
        self, num_in: int, num_out: int, config: BottleneckConfig, rule: nn.Parameter | None, *, zero: bool = False
    ) -> nn.Module:
        """Return one PHM projection of an adapter, ``zero`` for one that maps everything to zero."""
        if rule is None:
            raise ValueError("a Compacter layer needs the rule that all layers share")
        return PHMLinear(num_in, num_out, rule, rank=cast(CompacterConfig, config).phm_rank, zero=zero)


class PHMLinear(nn.Module):
    """A linear map ``W x + b`` with ``W = sum_i kron(A_i, s_i t_i)``, i = 1..n.

    A_i (n, n) are the shared ``rule``, s_i (out_features / n, rank) is ``left[i]``, t_i (rank, in_features / n) is
    ``right[i]``. Entries start with A ~ N(0, 1/n), s ~ N(0, 1/rank) and t ~ N(0, 1/in_features), so that those of W
    have variance 1 / in_features.

    Args:
        in_features: a multiple of n.
        out_features: a multiple of n.
        rule: (n, n, n), the matrices A_i, shared with other layers.
        rank: rank of s_i t_i.
        zero: start ``left`` at zero, and so W.

    Raises:
        ValueError: n divides not both sizes.
    """

    def __init__(
        self, in_features: int, out_features: int, rule: nn.Parameter, *, rank: int = 1, zero: bool = False
    ) -> None:
        super().__init__()
        n = rule.shape[0]
        if in_features % n or out_features % n:
            raise ValueError(f"phm_dim {n} must divide the sizes {in_features} and {out_features} of a projection")
        self.rule = rule
        with torch.device(rule.device):
            left = torch.zeros(n, out_features // n, rank)
            right = torch.randn(n, rank, in_features // n) / in_features**0.5
            self.left = nn.Parameter(left if zero else torch.randn(left.shape) / rank**0.5)
            self.right = nn.Parameter(right)
            self.bias = nn.Parameter(torch.zeros(out_features))

    @staticmethod
    def new_rule(n: int, device: torch.device) -> nn.Parameter:
        """Return fresh matrices A_i, (n, n, n)."""
        return nn.Parameter(torch.randn(n, n, n, device=device) / n**0.5)

    def weight(self) -> torch.Tensor:
        """Return W, (out_features, in_features), float32 under autocast too: it is made once a step, not per token."""
        device = self.rule.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            small = torch.bmm(self.left, self.right)
            # kron(A, B)[a * p + c, b * q + d] = A[a, b] * B[c, d]
            product = torch.einsum("iab,icd->acbd", self.rule, small)
        return product.reshape(len(self.bias), -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``W x + b`` of (..., in_features)."""
        return functional.linear(x, self.weight(), self.bias)


def _as_input(h: torch.Tensor) -> torch.Tensor:
    """Return h as the float32 projections take it; autocast casts by itself, and casting up first costs time."""
    if h.device.type != "meta" and torch.is_autocast_enabled(h.device.type):
        return h
    return h.float()


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return torch.tanh if name == "tanh" else cast(Activation, getattr(functional, name))
