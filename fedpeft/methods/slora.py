"""SLoRA's parameters (Babakniya et al. 2023, arXiv:2308.06522): LoRA factors, and values at masked places."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import Factors
from fedpeft.core.masks import VALUES_SUFFIX, check_density, mask_indices, mask_size, scatter
from fedpeft.core.orders import MERGE
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.traits import FACTORS, SPARSE
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.lora import LoRA
from fedpeft.methods.saving import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

log = logging.getLogger(__name__)
FLOAT_TYPES = ("Linear", "Conv1D")


@dataclass(frozen=True, kw_only=True)
class SLoRA(LoRA):
    """Low-rank factors and sparse values: ``W = W0 + scaling B A + scatter(values)``, ``scaling = alpha / rank``.

    The values sit at ``density * m * n`` random places of each target's weight (m, n), the same on all clients and the
    server because they follow from ``mask_seed``. They start at zero. Strategy ``slora`` trains the values first and
    the factors afterwards; a strategy that knows of neither trains and averages both together.

    While values take part, a target's weight is summed in float32 and its whole gradient is formed: a step then costs
    what full fine-tuning of the targets costs. A client that is sent none, and holds none, computes without them.

    The saved adapter is an ordinary LoRA adapter. Values that are not zero (a run that ended in the first stage) are
    saved without loss as further columns of the factors, as many as the mask has rows or columns; that may be large.

    Args:
        rank: rank of the factors, 1..1024.
        alpha: numerator of the scaling, positive.
        dropout: dropout on the factors' input, in [0, 1).
        target_modules: names of the linear modules to adapt, None for HF peft's choice for the architecture.
        density: share of each target's weight that the mask covers, in (0, 1].
        mask_seed: seed of the masks, a whole number.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> sorted(SLoRA(density=0.01).traits)
        ['factors', 'sparse']
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    density: float = 0.01
    mask_seed: int = 0
    ranks: Mapping[str, int] | None = field(init=False, default=None)
    rslora: bool = field(init=False, default=False)
    dora: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        problems = []
        for check in (super().__post_init__, partial(check_density, self.density)):
            try:
                check()
            except ConfigError as error:
                problems += error.problems
        if type(self.mask_seed) is not int:
            problems.append(f"mask_seed must be a whole number, got {self.mask_seed!r} (set method.mask_seed)")
        if problems:
            raise ConfigError(problems)

    @property
    def traits(self) -> frozenset[str]:
        """What strategies may count on: factors of one rank, and sparse values."""
        return frozenset({FACTORS, SPARSE})

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Insert factors and masked values beside the target modules; see ``Method.attach``.

        Raises:
            ConfigError: also where a target's weight is stored in 8 or 4 bits.
        """
        tunable = super().attach(model, head)
        masked = {pair.module: self._mask(model, pair.module) for pair in lora_pairs(tunable.shared)}
        values = {name + VALUES_SUFFIX: layer.sparse_values for name, layer in masked.items()}
        shared = {**tunable.shared, **values}
        return replace(
            tunable,
            shared={key: shared[key] for key in sorted(shared)},
            configure=partial(_configure, tunable.configure, masked),
        )

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write an ordinary LoRA adapter; see ``Method.save``."""
        plain = {key: value for key, value in tensors.items() if not key.endswith(VALUES_SUFFIX)}
        for pair in lora_pairs(plain):
            values = tensors.get(pair.module + VALUES_SUFFIX)
            if values is None or not values.any():
                continue
            shape = (plain[pair.b].shape[0], plain[pair.a].shape[1])
            change = as_factors(scatter(values, mask_indices(self.mask_seed, pair.module, shape, self.density), shape))
            log.warning(
                "%s still holds sparse values: saved as factors of rank %d beside those of rank %d (strategy=slora "
                "turns them into factors of rank %d after strategy.sparse_rounds)",
                pair.module, change.rank, self.rank, self.rank,
            )  # fmt: skip
            plain[MERGE + pair.a], plain[MERGE + pair.b] = (f.astype(np.float32) for f in (change.a, change.b))
        super().save(plain, folder, base_model=base_model, head_keys=head_keys)

    def _mask(self, model: nn.Module, module: str) -> Any:
        """Put a masked layer before the base of a LoRA layer and return it."""
        import torch

        from fedpeft.methods.peft_tuners.masked import MaskedLinear

        layer: Any = model.get_submodule(module.removeprefix(PREFIX))
        base = layer.get_base_layer()
        if type(base).__name__ not in FLOAT_TYPES:
            raise ConfigError(
                f"SLoRA adds to the base's weights, and {module.removeprefix(PREFIX)} is stored in 8 or 4 bits as "
                f"{type(base).__name__} (choose a model in float32 or bfloat16, or method=lora)"
            )
        transposed = type(base).__name__ == "Conv1D"
        rows, columns = base.weight.shape
        shape = (columns, rows) if transposed else (rows, columns)
        if base.weight.is_meta:
            # Only sizes count there, and drawing takes time.
            positions = torch.zeros(mask_size(shape, self.density), dtype=torch.int64, device="meta")
        else:
            flat = mask_indices(self.mask_seed, module, shape, self.density)
            i, j = np.unravel_index(flat, shape)
            positions = torch.from_numpy(j * columns + i if transposed else flat)
        layer.base_layer = MaskedLinear(base, positions)
        return layer.base_layer


def as_factors(dense: np.ndarray) -> Factors:
    """Return a matrix of few non-zero rows or columns as factors, exactly: one factor only picks.

    Example:
        >>> f = as_factors(np.float64([[0, 0, 0], [0, 5, 6]]))
        >>> f.b.tolist(), f.a.tolist()
        ([[0.0], [1.0]], [[0.0, 5.0, 6.0]])
    """
    m, n = dense.shape
    rows, columns = (np.flatnonzero(dense.any(axis=axis)) for axis in (1, 0))
    if len(rows) <= len(columns):
        return Factors(b=np.eye(m)[:, rows], a=dense[rows])
    return Factors(b=dense[:, columns], a=np.eye(n)[columns])


def _configure(
    scale: Callable[[float, frozenset[str]], None], masked: Mapping[str, Any], scaling: float, sent: frozenset[str]
) -> None:
    """Set the factors' scaling, and let those values take part that were sent, that train, or that are not zero."""
    scale(scaling, sent)
    for name, layer in masked.items():
        values: torch.Tensor = layer.sparse_values
        layer.active = (
            name + VALUES_SUFFIX in sent
            or values.requires_grad
            or (not values.is_meta and bool(values.count_nonzero()))
        )
