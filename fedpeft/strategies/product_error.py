"""How far the new global model is from the mean of the clients' models, without forming either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedpeft.core.factors import Factors, distance, factors_of, norm, stack
from fedpeft.core.orders import MERGE
from fedpeft.core.pairs import Pair, cut_rank, lora_pairs
from fedpeft.core.products import shares
from fedpeft.core.types import ClientUpdate, Tensors


def product_error(before: Tensors, updates: Sequence[ClientUpdate], after: Tensors, scaling: float) -> float | None:
    """Return the relative error of an aggregation in the products that it stands for.

        error = || D - sum_k p_k D_k ||_F / || sum_k p_k D_k ||_F,   p_k = n_k / sum_j n_j

    over all adapted weights together, where D is a model's change of the frozen base: ``s B A`` and whatever is merged.

    Args:
        before: the global tensors that the round began with; a factor that was not sent is taken from here.
        updates: what came back, with what was sent.
        after: the new model, ``FedPeft.model_tensors`` of the new global tensors.
        scaling: scaling of the global factors.

    Returns:
        None where the method has no factors, or the clients' mean change is zero.
    """
    pairs = lora_pairs(before, strict=False)
    wrong = whole = 0.0
    for pair in pairs:
        parts = [
            _change({**_cut(before, pair, one), **one.sent, **one.tensors}, pair, one.client.scaling) for one in updates
        ]
        mean = stack(parts, shares(updates))
        wrong += distance(_change(after, pair, scaling), mean) ** 2
        whole += norm(mean) ** 2
    return math.sqrt(wrong / whole) if whole else None


def _cut(before: Tensors, pair: Pair, update: ClientUpdate) -> Tensors:
    """Return the global factors at the rank of what the client has of them."""
    there = {**update.sent, **update.tensors}
    rank = there[pair.a].shape[0] if pair.a in there else there[pair.b].shape[1] if pair.b in there else None
    a, b = (before[pair.a], before[pair.b]) if rank is None else cut_rank(before[pair.a], before[pair.b], rank)
    return {pair.a: a, pair.b: b}


def _change(tensors: Mapping[str, np.ndarray], pair: Pair, scaling: float) -> Factors:
    own = factors_of(tensors, pair, scaling)
    if MERGE + pair.a not in tensors:
        return own
    merged = Factors(b=tensors[MERGE + pair.b], a=tensors[MERGE + pair.a])
    return stack([own, merged], [1.0, 1.0])
