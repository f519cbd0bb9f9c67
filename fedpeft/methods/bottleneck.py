"""Bottleneck adapters: Houlsby et al. 2019 (arXiv:1902.00751) and Pfeiffer et al. 2021 (arXiv:2005.00247)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.traits import LAYERS
from fedpeft.methods.inject import OneConfig
from fedpeft.methods.placement import common_problems, place

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Adapter(OneConfig):
    """Small networks after the sublayers of a frozen transformer: ``h + W_up act(W_down h + b_down) + b_up``.

    h (..., d) is the output of the sublayer's last projection, before residual sum and normalisation; W_down is
    (k, d), W_up (d, k), all float32. W_up and the biases start at zero, so that training starts from the base model.
    An adapter has ``2 k d + k + d`` parameters.

    Differs: normalisation layers stay frozen (Houlsby et al. train them); Pfeiffer et al. choose among several
    positions around the normalisation, here the adapter is always before it.

    A saved adapter loads with ``PeftModel.from_pretrained`` after ``import fedpeft.methods.peft_tuners``, because HF
    peft has no such kind of its own.

    Args:
        placement: ``houlsby``: after attention and after feed-forward; ``pfeiffer``: after feed-forward only.
        bottleneck: width k, at least 1 and at most the smallest d.
        activation: ``gelu``, ``relu``, ``silu`` or ``tanh``.
        target_modules: names of linear modules that adapters follow, instead of those that the placement means in a
            known architecture.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> Adapter(placement="pfeiffer", bottleneck=8).rank is None
        True
    """

    placement: str = "houlsby"
    bottleneck: int = 16
    activation: str = "gelu"
    target_modules: Sequence[str] | None = None

    traits: ClassVar[frozenset[str]] = frozenset({LAYERS})
    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        if problems := common_problems(self.bottleneck, self.activation, self.placement, self.target_modules):
            raise ConfigError(problems)

    def _config(self, model: nn.Module) -> Any:
        from fedpeft.methods.peft_tuners import BottleneckConfig

        config = BottleneckConfig(bottleneck_size=self.bottleneck, activation=self.activation, placement=self.placement)
        sizes = place(config, model, self.target_modules)
        if outside := [name for name in sizes if not any(part.isdigit() for part in name.split("."))]:
            raise ConfigError(
                f"adapters sit in numbered layers, which {', '.join(outside)} is not in: name it by more of its path "
                "or leave it out (set method.target_modules)"
            )
        return config
