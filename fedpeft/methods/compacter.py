"""Compacter (Karimi Mahabadi et al. 2021, arXiv:2106.04647): adapters made of Kronecker products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.methods.inject import OneConfig
from fedpeft.methods.placement import common_problems, is_count, place

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Compacter(OneConfig):
    """Bottleneck adapters whose projections are ``W = sum_i kron(A_i, s_i t_i)``, i = 1..n.

    For a projection from p to q features A_i is (n, n), s_i (q / n, r) and t_i (r, p / n), all float32. The A_i are
    the same in every projection of every layer. The projection up starts with s_i = 0 and biases start at zero, so
    that training starts from the base model. An adapter on d features with bottleneck k has ``2 r (d + k) + d + k``
    parameters, and there are n^3 more for all of them together.

    Differs: the paper starts near the identity, here training starts at it, and the other initial values give W
    entries of variance 1 / p. ``placement=pfeiffer`` is the paper's Compacter++.

    A saved adapter loads with ``PeftModel.from_pretrained`` after ``import fedpeft.methods.peft_tuners``, because HF
    peft has no such kind of its own.

    Args:
        placement: ``houlsby``: after attention and after feed-forward; ``pfeiffer``: after feed-forward only.
        bottleneck: width k, a multiple of ``phm_dim`` and at most the smallest d.
        phm_dim: number n of summands; divides every d.
        phm_rank: rank r of the second factors, 1..k / n.
        activation: ``gelu``, ``relu``, ``silu`` or ``tanh``.
        target_modules: names of linear modules that adapters follow, instead of those that the placement means in a
            known architecture.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> sorted(Compacter(bottleneck=8, phm_dim=2).traits)
        []
    """

    placement: str = "houlsby"
    bottleneck: int = 16
    phm_dim: int = 4
    phm_rank: int = 1
    activation: str = "gelu"
    target_modules: Sequence[str] | None = None

    traits: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        problems = common_problems(self.bottleneck, self.activation, self.placement, self.target_modules)
        for name, value in (("phm_dim", self.phm_dim), ("phm_rank", self.phm_rank)):
            if not is_count(value):
                problems.append(f"{name} must be a whole number >= 1, got {value!r} (set method.{name})")
        if not problems and self.bottleneck % self.phm_dim:
            problems.append(
                f"phm_dim must divide the bottleneck {self.bottleneck}, got {self.phm_dim} (set method.phm_dim)"
            )
        elif not problems and self.phm_rank > self.bottleneck // self.phm_dim:
            problems.append(
                f"phm_rank must be in 1..{self.bottleneck // self.phm_dim}, bottleneck / phm_dim, got {self.phm_rank} "
                "(set method.phm_rank)"
            )
        if problems:
            raise ConfigError(problems)

    def _config(self, model: nn.Module) -> Any:
        from fedpeft.methods.peft_tuners import CompacterConfig

        config = CompacterConfig(
            bottleneck_size=self.bottleneck,
            activation=self.activation,
            placement=self.placement,
            phm_dim=self.phm_dim,
            phm_rank=self.phm_rank,
        )
        sizes = place(config, model, self.target_modules)
        if odd := sorted({size for size in sizes.values() if size % self.phm_dim}):
            raise ConfigError(
                f"phm_dim must divide the targets' sizes {', '.join(map(str, odd))}, got {self.phm_dim} "
                "(set method.phm_dim)"
            )
        return config
