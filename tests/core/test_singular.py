"""How many singular values are kept, and what a receiver gets of them: by hand and as laws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedpeft.core.pairs import FactorError
from fedpeft.core.singular import keep_energy, split


def test_energy_by_hand() -> None:
    """Squares 16, 4, 4, 1 of 25, running sums .64, .80, .96, 1: a bound that is just met needs no further value."""
    s = np.float64([4, 2, 2, 1])
    asked = [1e-9, 0.64, 0.65, 0.8, 0.81, 0.96, 0.97, 1]
    assert [keep_energy(s, energy) for energy in asked] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert keep_energy(np.float64([4, 2, 0, 0]), 1) == 2
    assert keep_energy(np.float32([0.5]), 0.5) == 1
    assert keep_energy(np.float64([]), 0.5) == keep_energy(np.zeros(3), 1) == 0


def test_all_energy_keeps_what_a_running_sum_would_lose() -> None:
    """1 + (1e-9)^2 is 1 in float64."""
    assert keep_energy(np.float64([1, 1e-9]), 1) == 2


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.9, 0.99, 0.999999, 1])
def test_energy_is_kept_and_no_value_too_many(energy: float) -> None:
    for seed in range(20):
        s = np.sort(np.random.default_rng(seed).lognormal(sigma=2, size=12))[::-1]
        p, squares = keep_energy(s, energy), s**2
        assert squares[:p].sum() >= energy * squares.sum() * (1 - 1e-12)
        assert squares[: p - 1].sum() < energy * squares.sum()


def test_split_by_hand() -> None:
    """Singular values 8 and 2, scaling 2: B carries 4 and 1, or both sides carry 2 and 1."""
    u, s, vt = np.eye(2), np.float64([8, 2]), np.eye(2, 3)
    A, B = split(u, s, vt, rank=3, scaling=2.0)
    assert A.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert B.tolist() == [[4, 0, 0], [0, 1, 0]]
    A, B = split(u, s, vt, rank=2, scaling=2.0, balance="even")
    assert A.tolist() == [[2, 0, 0], [0, 1, 0]]
    assert B.tolist() == [[2, 0], [0, 1]]


@pytest.mark.parametrize("energy", [0, -0.5, 1.01, math.nan])
def test_energy_out_of_range_is_refused(energy: float) -> None:
    with pytest.raises(FactorError, match=r"energy must be in \(0, 1\], got"):
        keep_energy(np.ones(2), energy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more, got 0"),
        ({"scaling": 0.0}, "scaling must be positive, got 0.0"),
        ({"scaling": math.inf}, "scaling must be positive, got inf"),
        ({"balance": "a"}, "balance must be b or even, got a"),
    ],
)
def test_impossible_receivers_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FactorError, match=message):
        split(np.eye(2), np.ones(2), np.eye(2), **{"rank": 1, "scaling": 1.0, **changes})  # type: ignore[arg-type]
