"""CMA-ES finds known optima, is bound to its seed, and never returns worse than it was given."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.search import WORST, Found, minimise

OPTIMUM = np.array([0.2, 0.9, -0.4])


def quadratic(point: np.ndarray) -> float:
    """An ill-conditioned bowl, lowest at ``OPTIMUM``."""
    return float(np.square((point - OPTIMUM) * [1, 3, 10]).sum())


def search(
    fitness: Any = quadratic, start: Any = (1 / 3, 1 / 3, 1 / 3), evaluations: int = 400, seed: int = 0
) -> Found:
    source = np.random.Generator(np.random.PCG64(seed))
    return minimise(fitness, start, sigma=0.25, evaluations=evaluations, rng=source)


def test_the_optimum_of_a_quadratic_is_found() -> None:
    found = search()
    assert np.abs(found.point - OPTIMUM).max() < 1e-2
    assert found.value < 1e-4 < found.start_value == quadratic(np.full(3, 1 / 3))


def test_one_number_is_searched_too() -> None:
    assert search(lambda x: float((x[0] - 0.7) ** 2), [0.1], 100).point == pytest.approx([0.7], abs=1e-3)


def test_the_same_seed_tries_the_same_points_and_leaves_numpys_own_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    tried: list[list[bytes]] = []
    for seed in (0, 0, 1):
        points: list[bytes] = []

        def fitness(point: np.ndarray, seen: list[bytes] = points) -> float:
            seen.append(point.tobytes())
            return quadratic(point)

        search(fitness, evaluations=60, seed=seed)
        tried.append(points)
    assert tried[0] == tried[1] != tried[2]
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


@pytest.mark.parametrize("evaluations", [8, 14, 15, 100])
def test_whole_generations_are_tried_while_evaluations_last(evaluations: int) -> None:
    """Three numbers: the start and generations of 7."""
    calls: list[np.ndarray] = []

    def fitness(point: np.ndarray) -> float:
        calls.append(point)
        return quadratic(point)

    assert search(fitness, evaluations=evaluations).evaluations == len(calls) == 1 + 7 * ((evaluations - 1) // 7)


def test_a_start_that_nothing_beats_is_given_back() -> None:
    found = search(start=OPTIMUM.tolist(), evaluations=8)
    assert found.point.tolist() == OPTIMUM.tolist()
    assert found.value == found.start_value == 0


def test_points_without_a_value_are_the_worst() -> None:
    """A wall of NaN and infinities beside the optimum is avoided."""

    def fitness(point: np.ndarray) -> float:
        return quadratic(point) if point[0] > 0.1 else math.nan if point[1] > 0 else math.inf

    assert np.abs(search(fitness).point - OPTIMUM).max() < 5e-2
    assert search(lambda _: math.nan, evaluations=8).value == WORST


def test_too_few_evaluations_are_refused() -> None:
    with pytest.raises(ConfigError, match="over 3 numbers needs at least 8 evaluations, got 7"):
        search(evaluations=7)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "cma" else known(name, *more))
    with pytest.raises(ConfigError, match=r"pip install 'fedpeft\[merge\]'"):
        search()
