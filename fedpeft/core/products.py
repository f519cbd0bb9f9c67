"""What the rules that aggregate products share: the clients' changes, their exact sum, and factors to merge.

A client k of rank r_k and scaling s_k changes a weight by ``s_k B_k A_k``. Its weight in a sum is
``p_k = n_k / sum_j n_j``, by examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedpeft.core.errors import WireError
from fedpeft.core.factors import Factors, compress, factors_of, norm, stack, svd, truncate
from fedpeft.core.orders import MERGE
from fedpeft.core.pairs import Pair, cut_rank, lora_pairs
from fedpeft.core.tensors import weighted_mean
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors

NOISE = 1e-12
"""Singular values below this share of what was summed are float64's rounding, not change."""


def shares(updates: Sequence[ClientUpdate]) -> list[float]:
    """Return ``p_k = n_k / sum_j n_j`` of each update."""
    total = sum(one.num_examples for one in updates)
    return [one.num_examples / total for one in updates]


def changes_of(updates: Sequence[ClientUpdate], pair: Pair) -> list[Factors]:
    """Return ``s_k B_k A_k`` of each update, for one module."""
    return [factors_of(one.tensors, pair, one.client.scaling) for one in updates]


def mean_of_others(updates: Sequence[ClientUpdate], pairs: Sequence[Pair]) -> Tensors:
    """Return the mean, weighted by examples, of what came back besides the pairs' factors: a head, for one."""
    factors = {key for pair in pairs for key in (pair.a, pair.b)}
    others = [{key: value for key, value in one.tensors.items() if key not in factors} for one in updates]
    return weighted_mean(others, [one.num_examples for one in updates])


def for_client(tensors: Tensors, client: ClientInfo, scaling: float) -> Tensors:
    """Return the global tensors for a client of a smaller rank: the same product of the first r_k directions.

    A_k is the first r_k rows of A, B_k the first r_k columns of B times ``scaling / s_k``, so that
    ``s_k B_k A_k = scaling B[:, :r_k] A[:r_k]``.

    Args:
        tensors: the global tensors; given back as they are where rank and scaling are the client's already.
        client: its rank (None for the global one) and its scaling s_k.
        scaling: the global model's scaling.

    Raises:
        FactorError: the client's rank is above the global one.

    Example:
        >>> client = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=1, scaling=4.0)
        >>> sent = for_client({"x.lora_A.weight": np.eye(2), "x.lora_B.weight": np.float32([[8, 9]])}, client, 2.0)
        >>> sent["x.lora_A.weight"].tolist(), sent["x.lora_B.weight"].tolist()
        ([[1.0, 0.0]], [[4.0]])
    """
    pairs = lora_pairs(tensors)
    ranks = {tensors[pair.a].shape[0] for pair in pairs}
    if client.rank is None or (ranks == {client.rank} and client.scaling == scaling):
        return tensors
    sent = dict(tensors)
    for pair in pairs:
        a, b = cut_rank(tensors[pair.a], tensors[pair.b], client.rank)
        sent[pair.a], sent[pair.b] = a, (b * (scaling / client.scaling)).astype(b.dtype)
    return sent


def total(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return ``sum_k w_k b_k a_k`` by as few columns as it needs.

    Singular values below ``NOISE`` of ``sum_k |w_k| |b_k a_k|`` are dropped: where parts cancel, what their rounding
    leaves is no change. Equal parts of opposite weights give rank 0.

    Raises:
        FactorError: as ``factors.stack``.

    Example:
        >>> one = Factors(b=np.float64([[1], [2]]), a=np.float64([[3, 4]]))
        >>> total([one, one], [1, 2]).rank, total([one, one], [1, -1]).rank
        (1, 0)
    """
    size = sum(abs(weight) * norm(part) for weight, part in zip(weights, parts, strict=True))
    u, s, vt = svd(stack(parts, weights))
    return truncate((u, s, vt), int(np.count_nonzero(s > NOISE * size)))


def stacked(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return ``sum_k w_k b_k a_k`` as a stack, compressed where it has more than min(m, n) columns.

    Raises:
        FactorError: as ``factors.stack``.
    """
    change = stack(parts, weights)
    return compress(change) if change.rank > min(change.shape) else change


def fill_rows(a: np.ndarray, filled: int, rng: np.random.Generator) -> np.ndarray:
    """Return A with orthonormal rows, orthogonal to the first ``filled`` ones, in place of the others.

    A row of zeros beside a column of zeros in B has no gradient: that direction would never train again.

    Args:
        a: (r, n), r at most n, whose first rows are orthonormal.
        filled: how many rows stand.
        rng: draws the others.

    Example:
        >>> filled = fill_rows(np.float64([[1, 0], [0, 0]]), 1, np.random.default_rng(0))
        >>> np.abs(filled).round(12).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    missing = a.shape[0] - filled
    if missing <= 0:
        return a
    stands = a[:filled].T
    drawn = rng.normal(size=(a.shape[1], missing))
    # Twice is enough for orthogonality to rounding, whatever was drawn.
    for _ in range(2):
        drawn, _upper = np.linalg.qr(drawn - stands @ (stands.T @ drawn))
    return np.concatenate([a[:filled], drawn.T])


def merge_tensors(changes: Mapping[str, Factors]) -> Tensors:
    """Return changes as the ``merge.`` factors that clients and the evaluation add to the frozen base.

    Args:
        changes: by module name; those of rank 0 are left out.

    Returns:
        ``merge.<module>.lora_A.weight`` (R, n) and ``merge.<module>.lora_B.weight`` (m, R), float32, sorted by name.

    Raises:
        WireError: check ``aggregate``: a value does not fit float32.
    """
    merged = {}
    for module, change in changes.items():
        if change.rank:
            merged[f"{MERGE}{module}.lora_A.weight"] = to_float32(change.a, module)
            merged[f"{MERGE}{module}.lora_B.weight"] = to_float32(change.b, module)
    return {key: merged[key] for key in sorted(merged)}


def merged_change(tensors: Tensors, pair: Pair) -> list[Factors]:
    """Return the change that ``merge.`` tensors hold for a module, as a list of one; empty where they hold none."""
    if MERGE + pair.a not in tensors:
        return []
    return [Factors(b=tensors[MERGE + pair.b], a=tensors[MERGE + pair.a])]


def merged_of(entries: Mapping[str, object]) -> Tensors:
    """Return the ``merge.`` tensors among the entries of a message or a checkpoint, sorted by name."""
    return {key: np.asarray(entries[key]) for key in sorted(entries) if key.startswith(MERGE)}


def to_float32(value: np.ndarray, what: str) -> np.ndarray:
    """Return the value in float32.

    A strategy that changes its state in ``aggregate`` must know before that the round will stand.

    Raises:
        WireError: check ``aggregate``: the value is not finite in float32.
    """
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(value, dtype=np.float32)
    if not np.isfinite(cast).all():
        raise WireError("aggregate", f"the change of {what} does not fit float32")
    return cast
