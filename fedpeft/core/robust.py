"""What robust aggregation rules compute: functions of points, one row for each client.

f is the number of clients that may send anything at all, in concert and knowing all the others' points.
"""

from __future__ import annotations

import numpy as np

from fedpeft.core.errors import ConfigError, WireError


def check_cohort(name: str, cohort_size: int, num_malicious: int) -> None:
    """Refuse a cohort in which so many malicious clients cannot be borne.

    Args:
        name: of the strategy.
        cohort_size: n, clients asked in a round.
        num_malicious: f. Every rule here asks for n >= 2 f + 3, which Krum needs; medians would do with 2 f + 1.

    Raises:
        ConfigError: f is no whole number, or the cohort is too small for it.
    """
    if type(num_malicious) is not int or num_malicious < 0:
        raise ConfigError(f"strategy.num_malicious must be a whole number >= 0, got {num_malicious!r}")
    if cohort_size < 2 * num_malicious + 3:
        raise ConfigError(
            f"strategy {name} needs 2 f + 3 = {2 * num_malicious + 3} clients a round to bear f = {num_malicious} "
            f"malicious ones, got cohort_size={cohort_size} (raise cohort_size, or lower strategy.num_malicious)"
        )


def check_replies(name: str, num_replies: int, num_malicious: int) -> None:
    """Refuse a round with too few good replies; the old model stays.

    Raises:
        WireError: check ``aggregate``.
    """
    if num_replies < 2 * num_malicious + 3:
        raise WireError(
            "aggregate",
            f"{num_replies} good replies, {name} needs 2 f + 3 = {2 * num_malicious + 3} to bear f = {num_malicious} "
            "malicious ones",
        )


def coordinate_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each column's weighted median, a minimiser of ``sum_k w_k |y - x_k|``.

    Where the lower half weighs exactly half, the mean of the two values in the middle; with equal weights that is the
    usual median.

    Args:
        values: (n, d).
        weights: (n,), positive.

    Example:
        >>> coordinate_median(np.array([[1.0], [9.0], [3.0], [4.0]]), np.ones(4)).tolist()
        [3.5]
    """
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    below = np.cumsum(weights[order], axis=0)
    # Doubled rather than halved, so that whole numbers of examples are compared exactly.
    low, high = (2 * below < below[-1]).sum(axis=0), (2 * below <= below[-1]).sum(axis=0)
    columns = np.arange(values.shape[1])
    return np.asarray((ordered[low, columns] + ordered[high, columns]) / 2)


def trimmed_mean(values: np.ndarray, weights: np.ndarray, trim: int) -> np.ndarray:
    """Return each column's weighted mean without its ``trim`` smallest and ``trim`` largest values.

    Args:
        values: (n, d).
        weights: (n,), positive.
        trim: below n / 2.

    Example:
        >>> trimmed_mean(np.array([[1.0], [9.0], [3.0], [4.0]]), np.ones(4), trim=1).tolist()
        [3.5]
    """
    order = np.argsort(values, axis=0, kind="stable")[trim : len(values) - trim]
    kept, shares = np.take_along_axis(values, order, axis=0), weights[order]
    return np.asarray((shares * kept).sum(axis=0) / shares.sum(axis=0))


def krum_scores(points: np.ndarray, num_malicious: int) -> np.ndarray:
    """Return each point's sum of squared distances to its n - f - 2 nearest others; small is good.

    Args:
        points: (n, d).
        num_malicious: f, at most n - 3.

    Example:
        >>> krum_scores(np.array([[0.0], [1.0], [2.0], [9.0], [10.0]]), num_malicious=1).tolist()
        [5.0, 2.0, 5.0, 50.0, 65.0]
    """
    squares = _distances(points) ** 2
    others = np.sort(squares, axis=1)[:, 1:]
    return np.asarray(others[:, : len(points) - num_malicious - 2].sum(axis=1))


def geometric_median(
    points: np.ndarray,
    weights: np.ndarray,
    *,
    smoothing: float = 1e-6,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> tuple[np.ndarray, float]:
    """Return the shares s of the points in their geometric median ``s @ points``, by smoothed Weiszfeld steps.

        minimise  sum_k w_k h(||z - x_k||),    h(t) = t  for t >= nu,  t^2 / (2 nu) + nu / 2  below
        b_k = w_k / max(nu, ||z - x_k||),      z = sum_k b_k x_k / sum_k b_k

    (RFA, Pillutla et al. 2022, arXiv:1912.13445.) The median lies in the points' affine hull, so that steps are
    taken in n coordinates: the R of a QR of the differences from a central point keeps all distances.

    Differs: nu is relative, ``smoothing`` times the least radius of a ball about one of the points that holds half of
    the weight, so that the result scales with the points. Where that radius is 0, half of the weight sits on one
    point, which is the median.

    Args:
        points: (n, d).
        weights: (n,), positive.
        smoothing: nu in units of that radius.
        tolerance: steps end when the gradient is at most this share of the sum of weights.
        max_iterations: steps end after so many at the latest.

    Returns:
        The shares, (n,), which sum to 1, and the gradient's norm as a share of the sum of weights, 0..1: times the
        distance to the true minimum it bounds the excess of the objective, per weight. It is above the tolerance where
        the steps ran out.

    Example:
        >>> geometric_median(np.array([[0.0], [1.0], [9.0]]), np.ones(3))[0].round(3).tolist()
        [0.0, 1.0, 0.0]
    """
    total = float(weights.sum())
    radii = coordinate_median(_distances(points), weights)
    centre = int(np.argmin(radii))
    if radii[centre] == 0:
        return np.eye(len(points))[centre], 0.0
    nu = smoothing * float(radii[centre])
    places = np.transpose(np.linalg.qr((points - points[centre]).T, mode="r"))
    shares, gradient = weights / total, 1.0
    for _ in range(max_iterations):
        away = places - shares @ places
        pulls = weights / np.maximum(nu, np.linalg.norm(away, axis=1))
        gradient = float(np.linalg.norm(pulls @ away)) / total
        if gradient <= tolerance:
            break
        shares = pulls / pulls.sum()
    return shares, gradient


def clip_factors(norms: np.ndarray, cap: float) -> np.ndarray:
    """Return ``min(1, cap / norm)`` for each norm, 1 for a norm of zero.

    Example:
        >>> clip_factors(np.array([0.0, 1.0, 4.0]), cap=2.0).tolist()
        [1.0, 1.0, 0.5]
    """
    return np.asarray(np.where(norms > cap, cap / np.maximum(norms, np.finfo(np.float64).tiny), 1.0))


def _distances(points: np.ndarray) -> np.ndarray:
    """Return the distances of all pairs, (n, n); from differences, because products cancel where points are close."""
    result = np.zeros((len(points), len(points)))
    for i in range(len(points) - 1):
        result[i, i + 1 :] = np.linalg.norm(points[i + 1 :] - points[i], axis=1)
    return result + result.T
