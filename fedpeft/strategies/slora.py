"""SLoRA (Babakniya et al. 2023, arXiv:2308.06522): sparse fine-tuning first, LoRA from what it found afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.masks import VALUES_SUFFIX, mask_indices, mask_size
from fedpeft.core.pairs import A_SUFFIX, B_SUFFIX, Pair, lora_pairs
from fedpeft.core.products import to_float32
from fedpeft.core.singular import Svd, split
from fedpeft.core.sparse_svd import sparse_svd
from fedpeft.core.tensors import replaced, weighted_mean
from fedpeft.core.traits import FACTORS, SPARSE
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft, StateValue

ZERO = 1e-12
"""Singular values below this share of the largest are zero."""


class SLoRA(FedPeft):
    """Train masked values of the weights for some rounds, turn them into LoRA factors, train those from there.

        stage one, rounds 1..R1:  v = sum_k p_k v_k,   W = W0 + scatter(v)
        after round R1:           scatter(v) = U S V^T,   B = U_r S_r / s,   A = V_r^T,   v = 0
        stage two:                A = sum_k p_k A_k,   B = sum_k p_k B_k,   W = W0 + s B A

    The mask is random, the same for all clients and rounds, and never travels: it follows from a seed. Up and down go
    nnz values a weight in stage one, (m + n) r in stage two, and the head in both. ``s B A`` is the best change of
    rank r; what it lacks is dropped. The notes say how much: ``svd_dropped`` = ||dW - s B A|| / ||dW|| over all
    weights, and ``svd_cosine``, that of dW and s B A.

    Where the round that should end stage one is kept (too few good replies), the next one ends it. The server
    decomposes one weight after the other, large ones without forming them (``core.sparse_svd``).

    Differs: the mask covers the weights that LoRA adapts, not all of the model, so that the reset leaves nothing else
    behind. The head is averaged throughout and keeps what stage one taught it.

    Args:
        sparse_rounds: R1, 1 .. rounds - 1.
        rounds: number of the run's last round, to check R1 against; None for no check.
        density: share of each weight that the mask covers; the method's.
        mask_seed: seed of the masks; the method's.
        split: which factor carries the singular values: ``b``, or ``even`` for their roots in both.
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> SLoRA(cohort_size=4, sparse_rounds=2, rounds=5).linear
        True
    """

    linear = True
    requires = frozenset({FACTORS, SPARSE})
    # Between the stages values become factors: neither what a codec kept back nor a server's momentum fits any more.
    renews_basis = True

    def __init__(
        self,
        *,
        sparse_rounds: int = 2,
        rounds: int | None = None,
        density: float = 0.01,
        mask_seed: int = 0,
        split: Literal["b", "even"] = "b",
        **settings: Any,
    ) -> None:
        problems = []
        if type(sparse_rounds) is not int or sparse_rounds < 1:
            problems.append(f"sparse_rounds must be 1 or more, got {sparse_rounds!r} (set strategy.sparse_rounds)")
        elif rounds is not None and sparse_rounds >= rounds:
            problems.append(
                f"sparse_rounds must leave rounds for the factors: below rounds={rounds}, got {sparse_rounds} "
                "(set strategy.sparse_rounds or rounds)"
            )
        if split not in ("b", "even"):
            problems.append(f"split must be b or even, got {split!r} (set strategy.split)")
        try:
            mask_size((1, 1), density)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        super().__init__(**settings)
        self.sparse_rounds, self.density, self.mask_seed = sparse_rounds, density, mask_seed
        self.split: Literal["b", "even"] = split
        self._switched = False
        self._dropped, self._cosine = 0.0, 0.0

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the values in stage one, the factors in stage two, the rest in both."""
        if not self._switched:
            self._check_mask(global_tensors)
        stays = VALUES_SUFFIX if self._switched else (A_SUFFIX, B_SUFFIX)
        return {key: value for key, value in global_tensors.items() if not key.endswith(stays)}

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the means; at the end of stage one with factors in place of the values."""
        mean = weighted_mean([one.tensors for one in updates], [one.num_examples for one in updates])
        new = replaced(global_tensors, mean)
        if not self._switched and self.view.server_round >= self.sparse_rounds:
            new |= self._to_factors(new)
        return new

    def model_tensors(self, global_tensors: Tensors) -> Tensors:
        """Return what counts: in stage two no values, which are zero, so that none are added."""
        if not self._switched:
            return global_tensors
        return {key: value for key, value in global_tensors.items() if not key.endswith(VALUES_SUFFIX)}

    def state(self) -> dict[str, StateValue]:
        """Return the stage, and what the change between the stages lost."""
        return {"switched": int(self._switched), "dropped": self._dropped, "cosine": self._cosine}

    def load_state(self, state: Mapping[str, StateValue]) -> None:
        """Take back what ``state`` returned."""
        self._switched = bool(state["switched"])
        self._dropped, self._cosine = (float(state[name]) for name in ("dropped", "cosine"))

    def notes(self) -> Mapping[str, object]:
        """Return the stage (1 or 2) that comes next, and what the change between the stages lost once it is known."""
        lost = {"svd_dropped": self._dropped, "svd_cosine": self._cosine} if self._switched else {}
        return {"stage": 1 + int(self._switched), **lost}

    def _to_factors(self, tensors: Tensors) -> Tensors:
        """Return factors of the values' change, and zeros for the values; remember what is lost."""
        changed: Tensors = {}
        kept, whole = 0.0, 0.0
        for pair in lora_pairs(tensors):
            key, shape, rank = pair.module + VALUES_SUFFIX, _shape(tensors, pair), tensors[pair.a].shape[0]
            indices = mask_indices(self.mask_seed, pair.module, shape, self.density)
            u, s, vt = sparse_svd(tensors[key], indices, shape, rank)
            kept += float(np.sum(s[:rank] ** 2))
            whole += float(np.sum(np.square(tensors[key], dtype=np.float64)))
            a, b = trainable_split((u, s, vt), rank, self.view.ranks.scaling, self.split)
            changed[pair.a], changed[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
            changed[key] = np.zeros_like(tensors[key])
        # The best change of rank r is a projection: their inner product is its own squared norm.
        share = min(1.0, kept / whole) if whole else 1.0
        self._cosine, self._dropped = math.sqrt(share), math.sqrt(1 - share)
        self._switched = True
        return changed

    def _check_mask(self, tensors: Tensors) -> None:
        """Refuse another density than the method's, before anybody trains."""
        for pair in lora_pairs(tensors):
            size, wanted = len(tensors[pair.module + VALUES_SUFFIX]), mask_size(_shape(tensors, pair), self.density)
            if size != wanted:
                raise ConfigError(
                    f"strategy.density={self.density} masks {wanted} places of {pair.module}, the method has {size} "
                    "(set method.density alone)"
                )


def _shape(tensors: Tensors, pair: Pair) -> tuple[int, int]:
    """Return (out_features, in_features) of an adapted weight."""
    return tensors[pair.b].shape[0], tensors[pair.a].shape[1]


def trainable_split(
    change: Svd, rank: int, scaling: float, balance: Literal["b", "even"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return A (rank, n) and B (m, rank) as ``core.singular.split``, in which every direction can train.

    With ``even``, a singular value of zero would leave a row of A and a column of B at zero, which have no gradient:
    there A keeps the singular vector.

    Args:
        change: u, s, vt of the change; at least ``rank`` singular values.
        rank: the factors' rank.
        scaling: the factors' alpha / rank.
        balance: ``b`` or ``even``.
    """
    u, s, vt = change
    real = s > ZERO * s.max(initial=0.0)
    a, b = split(u, np.where(real, s, 0.0), vt, rank, scaling, balance)
    return np.where(real[:rank, None], a, vt[:rank]), b
