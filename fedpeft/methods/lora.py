"""LoRA (Hu et al. 2022, arXiv:2106.09685) with its rank-stabilised and weight-decomposed forms, through HF peft."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.orders import MERGE
from fedpeft.core.pairs import lora_pairs, pad_rank
from fedpeft.core.traits import FACTORS, RANKS
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.inject import attach_config
from fedpeft.methods.saving import skeleton, write_adapter
from fedpeft.methods.targets import are_targets, check_rank, complete

if TYPE_CHECKING:
    from torch import nn

MAX_RANK = 1024


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adaptation: ``W = W0 + scaling B A`` with ``scaling = alpha / rank``.

    A (rank, in_features) and B (out_features, rank) are float32, W0 is frozen. A starts Kaiming-uniform, B at zero, so
    that training starts from the base model.

    Rank-stabilised (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732): ``scaling = alpha / sqrt(rank)``, under which
    learning does not slow down as the rank grows.

    Weight-decomposed (DoRA, Liu et al. 2024, arXiv:2402.09353): ``W = m * V / ||V||`` with ``V = W0 + scaling B A``,
    norms of V over its input features, and a trained magnitude m (out_features) that starts at ``||W0||``. As in the
    paper's section 4.3 the norm is taken for a constant in the backward pass. The change is no product of two
    factors, so rules for LoRA factors do not admit it.

    Args:
        rank: rank of the update, 1..1024.
        ranks: rank by device profile or device class, for clients that differ from ``rank``; the global model has the
            largest of all.
        alpha: numerator of the scaling, positive.
        dropout: dropout on the adapter's input, in [0, 1).
        target_modules: names of linear modules, ``all-linear``, or None for HF peft's choice for the architecture.
        rslora: scale by alpha / sqrt(rank).
        dora: train a magnitude beside the direction.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> LoRA(rank=4, alpha=8, target_modules=["query"]).scaling
        2.0
    """

    rank: int = 8
    ranks: Mapping[str, int] | None = None
    alpha: float = 16
    dropout: float = 0.0
    target_modules: Sequence[str] | str | None = None
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        problems = []
        named = self.ranks if isinstance(self.ranks, Mapping) else {}
        if self.ranks is not None and not isinstance(self.ranks, Mapping):
            problems.append(f"ranks must map devices to ranks, as {{phone: 4}}, got {self.ranks!r} (set method.ranks)")
        for setting, rank in {"rank": self.rank, **{f"ranks.{name}": rank for name, rank in named.items()}}.items():
            if type(rank) is not int or not 1 <= rank <= MAX_RANK:
                problems.append(f"{setting} must be in 1..{MAX_RANK}, got {rank!r} (set method.{setting})")
        if not (_is_number(self.alpha) and 0 < self.alpha < math.inf):
            problems.append(f"alpha must be positive, got {self.alpha!r} (set method.alpha)")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            problems.append(f"dropout must be in [0, 1), got {self.dropout!r} (set method.dropout)")
        targets = self.target_modules
        if targets is not None and not are_targets(targets):
            problems.append(
                f"target_modules must list names or be all-linear, got {targets!r} (set method.target_modules)"
            )
        problems += [
            f"{name} must be true or false, got {value!r} (set method.{name})"
            for name, value in (("rslora", self.rslora), ("dora", self.dora))
            if not isinstance(value, bool)
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def traits(self) -> frozenset[str]:
        """What strategies may count on; see ``Method.traits``."""
        return frozenset() if self.dora else frozenset({FACTORS, RANKS})

    @property
    def largest(self) -> int:
        """The global model's rank: the largest of all."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank

    @property
    def scaling(self) -> float:
        """What the product B A of the global model is multiplied by."""
        return self.scaling_for(self.largest)

    def scaling_for(self, rank: int) -> float:
        """Return what the product B A of factors of another rank is multiplied by.

        alpha / rank, or alpha / sqrt(rank) where rank-stabilised.
        """
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Insert factors beside the target modules; see ``Method.attach``."""
        tunable = attach_config(self._config(model), model, head, rank=self.largest)
        return replace(tunable, configure=partial(_set_scaling, model, self.scaling))

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        config = self._config(skeleton(base_model, head_keys))
        joined, config.r = join_merged(tensors, self.scaling, self.largest)
        # The scaling stays what it was at the larger rank that merged factors make.
        config.lora_alpha = self.scaling * (math.sqrt(config.r) if self.rslora else config.r)
        write_adapter(config, joined, folder, base_model=base_model, head_keys=head_keys)

    def _config(self, model: nn.Module) -> Any:
        from peft import LoraConfig

        # peft says int and takes any number.
        alpha: Any = self.alpha
        config: Any = LoraConfig(
            r=self.largest,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        complete(config, model, self.target_modules, setting="method.target_modules")
        above = [f"method.ranks.{name}" for name, rank in (self.ranks or {}).items() if rank > self.rank]
        setting = " or ".join(above) or "method.rank"
        check_rank(model, config.target_modules, self.largest, setting=setting)
        return config


def join_merged(tensors: Tensors, scaling: float, rank: int) -> tuple[Tensors, int]:
    """Return factors with the ``merge.`` factors beside them joined in, all at one rank, and that rank.

        scaling [B, B_m / scaling] [A; A_m] = scaling B A + B_m A_m

    Args:
        tensors: LoRA factors, ``merge.`` factors and whatever else, e.g. a head.
        scaling: what the products of the unmerged factors are multiplied by.
        rank: rank of the unmerged factors.
    """
    own = {key: value for key, value in tensors.items() if not key.startswith(MERGE)}
    extra = {key.removeprefix(MERGE): value for key, value in tensors.items() if key.startswith(MERGE)}
    pairs = lora_pairs(extra)
    largest = rank + max((extra[pair.a].shape[0] for pair in pairs), default=0)
    for pair in lora_pairs(own) if pairs else ():
        a, b = own[pair.a], own[pair.b]
        if pair in pairs:
            a = np.concatenate([a, extra[pair.a]])
            b = np.concatenate([b, extra[pair.b] / np.float32(scaling)], axis=1)
        own[pair.a], own[pair.b] = pad_rank(a, b, largest)
    return own, largest


def _set_scaling(model: nn.Module, own: float, scaling: float, sent: frozenset[str]) -> None:
    """Give every adapted module the scaling of the factors that were loaded, 0 for the method's own."""
    module: Any
    for module in model.modules():
        if hasattr(module, "lora_A") and "default" in module.scaling:
            module.scaling["default"] = scaling or own


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
