"""LoRA-SB (Ponkshe et al. 2024, arXiv:2411.19557): a small matrix that trains between two fixed factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.core.pairs import CORE_SUFFIX, lora_pairs
from fedpeft.core.traits import CORE
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.lora import LoRA
from fedpeft.methods.saving import PREFIX

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class LoRASB(LoRA):
    """Low-rank adaptation as ``W = W0 + scaling B R A`` of which R alone trains, ``scaling = alpha / rank``.

    A (rank, in_features) has orthonormal rows and B (out_features, rank) orthonormal columns; R (rank, rank) starts at
    zero, so that training starts from the base model. A and B are drawn at first, the same on all clients from one
    seed; strategy ``fed_sb`` puts the singular vectors of the first gradient in their place, as the paper does. They
    are among the tensors that may travel, but no order makes them train.

    R counts rank^2 parameters a module, whatever the module's size: ranks of 32 to 200 are usual. The mean of several
    R is exact, because the change is linear in R while A and B are common.

    The saved adapter is an ordinary LoRA adapter whose ``lora_B`` is B R.

    Differs: the paper starts R at the first step's singular values; here it is ``fed_sb``'s ``init_lr``, 0 at first.

    Args:
        rank: rank of the update, 1..1024.
        alpha: numerator of the scaling, positive.
        dropout: dropout on the adapter's input, in [0, 1).
        target_modules: names of the linear modules to adapt, None for HF peft's choice for the architecture.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> sorted(LoRASB(rank=64, alpha=64).traits), LoRASB(rank=64, alpha=64).scaling
        (['core'], 1.0)
    """

    rank: int = 32
    alpha: float = 32
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    ranks: Mapping[str, int] | None = field(init=False, default=None)
    rslora: bool = field(init=False, default=False)
    dora: bool = field(init=False, default=False)

    @property
    def traits(self) -> frozenset[str]:
        """What strategies may count on: no plain factors, because the change is none of ``lora_B lora_A``."""
        return frozenset({CORE})

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Insert fixed factors and the matrix between them beside the target modules; see ``Method.attach``."""
        tunable = super().attach(model, head)
        shared = dict(tunable.shared)
        for pair in lora_pairs(tunable.shared):
            layer = model.get_submodule(pair.module.removeprefix(PREFIX))
            shared[pair.module + CORE_SUFFIX] = _put_core(layer)
        return replace(tunable, shared={key: shared[key] for key in sorted(shared)})

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write an ordinary LoRA adapter with A and B R; see ``Method.save``."""
        plain = {key: value for key, value in tensors.items() if not key.endswith(CORE_SUFFIX)}
        for pair in lora_pairs(plain):
            product = plain[pair.b].astype(np.float64) @ tensors[pair.module + CORE_SUFFIX]
            plain[pair.b] = product.astype(np.float32)
        super().save(plain, folder, base_model=base_model, head_keys=head_keys)


def _put_core(layer: Any) -> torch.Tensor:
    """Fix a LoRA layer's factors at random orthonormal ones, put R between them, return R."""
    from torch import nn

    from fedpeft.methods.peft_tuners.cored import CoredLinear, FixedLinear

    for factors, kind in ((layer.lora_A, CoredLinear), (layer.lora_B, FixedLinear)):
        weight = factors["default"].weight
        nn.init.orthogonal_(weight)
        weight.requires_grad_(False)
        factors["default"] = kind(weight)
    core: torch.Tensor = layer.lora_A["default"].core
    return core
