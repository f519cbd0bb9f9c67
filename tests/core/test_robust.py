"""Medians, trimmed means, Krum's scores and the geometric median, against oracles and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from fedpeft.core.robust import (
    clip_factors,
    coordinate_median,
    geometric_median,
    krum_scores,
    trimmed_mean,
)


def cost(z: np.ndarray, points: np.ndarray, weights: np.ndarray) -> float:
    return float(weights @ np.linalg.norm(points - z, axis=1))


@pytest.mark.parametrize("n", [3, 4, 9, 10])
def test_medians_and_trimmed_means_are_numpys_and_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 50))
    values[1] = values[0]
    assert np.allclose(coordinate_median(values, np.ones(n)), np.median(values, axis=0), rtol=1e-14)
    for trim in range((n + 1) // 2):
        expected = stats.trim_mean(values, (trim + 0.5) / n, axis=0)
        assert np.allclose(trimmed_mean(values, np.ones(n), trim), expected, rtol=1e-12)


def test_a_weight_is_that_many_clients() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=(6, 20)), np.array([1, 4, 2, 2, 3, 1])
    assert np.array_equal(coordinate_median(values, weights), np.median(np.repeat(values, weights, axis=0), axis=0))
    # Trimming goes by clients, not by weight.
    order = np.argsort(values, axis=0)[1:-1]
    expected = [np.average(values[order[:, i], i], weights=weights[order[:, i]]) for i in range(20)]
    assert np.allclose(trimmed_mean(values, weights, 1), expected)


def test_the_weighted_median_by_hand() -> None:
    """0, 1, 2, 9, 10. Weights 1 1 1 1 5: the last alone has more than half. 1 1 1 1 4: half on each side of 9..10."""
    values = np.array([[0.0], [1.0], [2.0], [9.0], [10.0]])
    assert coordinate_median(values, np.array([1, 1, 1, 1, 5])).tolist() == [10.0]
    assert coordinate_median(values, np.array([1, 1, 1, 1, 4])).tolist() == [9.5]


def test_krum_scores_by_brute_force() -> None:
    points = np.random.default_rng(2).normal(size=(9, 5))
    points[4] = points[3]
    squares = [[((p - q) ** 2).sum() for j, q in enumerate(points) if j != i] for i, p in enumerate(points)]
    for f in (0, 1, 3):
        assert np.allclose(krum_scores(points, f), [sum(sorted(one)[: 9 - f - 2]) for one in squares])


def test_the_geometric_median_of_a_quadrilateral_is_where_its_diagonals_cross() -> None:
    """(0, 0)-(10, 10) and (1, 0)-(0, 1) cross in (1/2, 1/2), on both shortest ways; the mean is (2.75, 2.75)."""
    points = np.array([[0.0, 0.0], [10.0, 10.0], [1.0, 0.0], [0.0, 1.0]])
    shares, gradient = geometric_median(points, np.ones(4))
    assert np.allclose(shares @ points, 0.5, atol=1e-5)
    assert gradient <= 1e-6
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(6))
def test_the_geometric_median_is_no_worse_than_a_grid_and_scipys_minimum(seed: int) -> None:
    """In the plane, with weights: the excess over the best of 160,000 places is within what the gradient allows."""
    rng = np.random.default_rng(seed)
    points, weights = rng.normal(size=(7, 2)), rng.integers(1, 6, 7).astype(float)
    shares, gradient = geometric_median(points, weights)
    got = cost(shares @ points, points, weights)
    ticks = np.linspace(-3, 3, 400)
    places = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 1, 2)
    grid = (weights * np.linalg.norm(points - places, axis=2)).sum(axis=1)
    simplex = optimize.minimize(cost, points.mean(0), (points, weights), method="Nelder-Mead", options={"xatol": 1e-9})
    assert gradient <= 1e-6
    assert got <= min(grid.min(), simplex.fun) + 1e-5 * weights.sum()
    assert got >= simplex.fun - 1e-7


def test_a_point_with_half_of_the_weight_is_the_geometric_median() -> None:
    points = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [9.0, 0.0], [-4.0, 7.0]])
    assert np.array_equal(geometric_median(points, np.ones(5))[0] @ points, [1, 2])
    shares, _ = geometric_median(points[2:], np.array([3.0, 1.0, 1.0]))
    assert np.allclose(shares @ points[2:], [1, 2], atol=1e-5)


def test_the_geometric_median_scales_turns_and_shifts_with_its_points() -> None:
    rng = np.random.default_rng(4)
    points = rng.normal(size=(8, 5))
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    z = geometric_median(points, np.ones(8))[0] @ points
    for scale in (1e-6, 1.0, 1e4):
        placed = scale * points @ turn + 3.0
        got = geometric_median(placed, np.ones(8))[0] @ placed
        assert np.allclose(got, scale * z @ turn + 3.0, atol=2e-5 * scale + 1e-12, rtol=0)


def test_points_far_beyond_do_not_spoil_its_digits() -> None:
    """Two of seven points 10^12 away leave the gradient as small as ever."""
    points = np.random.default_rng(5).normal(size=(7, 3))
    points[:2] += 1e12
    shares, gradient = geometric_median(points, np.ones(7))
    assert gradient <= 1e-6
    assert np.linalg.norm(shares @ points) < 10


def test_steps_that_run_out_say_so() -> None:
    points = np.random.default_rng(6).normal(size=(9, 4))
    assert geometric_median(points, np.ones(9), max_iterations=2)[1] > 1e-6


def test_lengths_are_clipped_and_zero_stays() -> None:
    assert clip_factors(np.array([0.0, 2.0, 5.0]), 2.0).tolist() == [1.0, 1.0, 0.4]
    assert clip_factors(np.array([0.0, 3.0]), 0.0).tolist() == [1.0, 0.0]
