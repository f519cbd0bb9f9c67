"""Merging several models' changes: task arithmetic and TIES.

Both work on changes of one tensor at a time. TIES needs low-rank changes multiplied out: which entries of
``scaling * B A`` are large shows in the dense (m, n) product only. Go matrix by matrix, so as to hold that of one
matrix, K m n numbers, at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.tensors import weighted_mean


def task_arithmetic(changes: Sequence[np.ndarray], weights: Sequence[float], scale: float = 1.0) -> np.ndarray:
    """Return ``scale * sum_k w_k x_k / sum_k w_k`` (Ilharco et al. 2023, arXiv:2212.04089).

    Differs: weights are normalised, so that clients that agree are given back at scale 1 and 1 is FedAvg; the paper's
    lambda, which multiplies the plain sum, is scale / K for K equal weights.

    Args:
        changes: what each client changed a tensor by, equal shapes.
        weights: one positive number for each client.
        scale: lambda, applied to the mean.

    Returns:
        The merged change, float64.

    Raises:
        ConfigError: changes and weights do not fit together.

    Example:
        >>> task_arithmetic([np.array([1.0, 4.0]), np.array([5.0, 0.0])], [1, 3], scale=2.0).tolist()
        [8.0, 2.0]
    """
    _check(changes, weights)
    mean = weighted_mean([{"x": np.asarray(one, dtype=np.float64)} for one in changes], weights)["x"]
    return scale * mean


def trim(x: np.ndarray, density: float) -> np.ndarray:
    """Return a copy in which the entries of largest magnitude stay and the others are zero.

    ``ceil(density * size)`` entries stay; of equal magnitudes those that come first in C order.

    Args:
        x: any shape.
        density: share to keep, in (0, 1].

    Raises:
        ConfigError: the density is outside (0, 1].

    Example:
        >>> trim(np.array([1.0, -4.0, 2.0, 0.5]), density=0.5).tolist()
        [0.0, -4.0, 2.0, 0.0]
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density must be in (0, 1], got {density}")
    # 0.14 * 50 is 7.000000000000001 in floating point.
    keep = math.ceil(density * x.size - 1e-9)
    if keep >= x.size:
        return x.copy()
    sizes = np.abs(x).ravel()
    smallest = np.partition(sizes, x.size - keep)[x.size - keep]
    kept = sizes > smallest
    kept[np.flatnonzero(sizes == smallest)[: keep - int(kept.sum())]] = True
    return np.where(kept.reshape(x.shape), x, np.zeros((), x.dtype))


def ties(changes: Sequence[np.ndarray], weights: Sequence[float], density: float, scale: float = 1.0) -> np.ndarray:
    """Return the TIES merge (Yadav et al. 2023, arXiv:2306.01708): trim, elect signs, average what agrees.

        x_k = trim(change_k, density);  s = sign(sum_k w_k x_k)
        y = scale * sum_k w_k x_k / sum_k w_k, over the clients k with sign(x_k) = s, entry by entry; 0 where s = 0

    Clients whose entry was trimmed away, or points the other way, do not count: K clients that agree are given back,
    trimmed, however large K is, and one client is too.

    Differs: weights enter the election and, normalised over the clients that agree, the mean; the paper has none.
    Multiplying each change by its share before an unweighted mean would shrink the merge about K times.

    Args:
        changes: what each client changed a tensor by, equal shapes; low-rank ones multiplied out.
        weights: one positive number for each client.
        density: share of entries that each client keeps, in (0, 1]; the paper's is 0.2.
        scale: applied to the mean.

    Returns:
        The merged change, float64.

    Raises:
        ConfigError: the density is outside (0, 1], or changes and weights do not fit together.
    """
    _check(changes, weights)
    trimmed = [trim(np.asarray(one), density) for one in changes]
    elected = np.zeros(trimmed[0].shape)
    for weight, one in zip(weights, trimmed, strict=True):
        elected += weight * one.astype(np.float64)
    signs = np.sign(elected)
    mean, total = np.zeros(signs.shape), np.zeros(signs.shape)
    for weight, one in zip(weights, trimmed, strict=True):
        # Where no sign is elected, those that agree are the zeros.
        agrees = np.sign(one) == signs
        total[agrees] += weight
        # A running mean: equal values move it by exactly nothing.
        mean[agrees] += (weight / total[agrees]) * (one[agrees] - mean[agrees])
    return scale * mean


def _check(changes: Sequence[np.ndarray], weights: Sequence[float]) -> None:
    shapes = sorted({np.shape(one) for one in changes})
    problems = []
    if len(shapes) != 1:
        problems.append(f"changes to merge must have one shape, got {shapes or 'none'}")
    if len(changes) != len(weights) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        problems.append(f"{len(changes)} changes need as many positive finite weights, got {list(weights)}")
    if problems:
        raise ConfigError(problems)
