"""Searching a few numbers by CMA-ES (Hansen 2016, arXiv:1604.00772), with the ``cma`` package."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.core.errors import ConfigError

WORST = 1e100
"""What a value that is not finite counts as."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        point: (dim,) the best point that was tried, the first one of several.
        value: fitness there.
        start_value: fitness at the start.
        evaluations: how many points were tried.
    """

    point: np.ndarray
    value: float
    start_value: float
    evaluations: int


def population(dim: int) -> int:
    """Return how many points CMA-ES tries in each generation, ``4 + floor(3 ln dim)``.

    Example:
        >>> [population(dim) for dim in (1, 10, 50)]
        [4, 10, 15]
    """
    return 4 + math.floor(3 * math.log(dim))


def check_cma() -> None:
    """Refuse to go on without the ``cma`` package.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("cma") is None:
        raise ConfigError("the search needs the cma package, which is not installed (pip install 'fedpeft[merge]')")


def minimise(
    fitness: Callable[[np.ndarray], float],
    start: Sequence[float],
    *,
    sigma: float,
    evaluations: int,
    rng: np.random.Generator,
) -> Found:
    """Return the best of the points that CMA-ES tries, the start among them: never worse than where it began.

    Whole generations are tried as long as the evaluations last, or until CMA-ES sees no progress. Nothing is random
    but what comes from ``rng``.

    Args:
        fitness: what is to be small; NaN and infinity count as ``WORST``.
        start: (dim,) where to begin.
        sigma: standard deviation of the first generation.
        evaluations: most calls of ``fitness``; the start and one generation at least.
        rng: source of all points.

    Raises:
        ConfigError: too few evaluations, or ``cma`` is missing.
    """
    size = population(len(start))
    if evaluations < 1 + size:
        raise ConfigError(
            f"a search over {len(start)} numbers needs at least {1 + size} evaluations, got {evaluations}"
        )
    check_cma()
    import cma

    def judged(point: np.ndarray) -> float:
        value = float(fitness(point))
        return value if math.isfinite(value) else WORST

    point = np.array(start, dtype=np.float64)
    value = start_value = judged(point)
    # A NaN seed leaves numpy's global generator alone; cma then draws from ours only.
    options = {"popsize": size, "seed": math.nan, "verbose": -9, "verb_log": 0, "verb_disp": 0}
    strategy = cma.CMAEvolutionStrategy(
        point.copy(), sigma, {**options, "randn": lambda *shape: rng.standard_normal(shape)}
    )
    used = 1
    while used + size <= evaluations and not strategy.stop():
        points = strategy.ask()
        values = [judged(one) for one in points]
        strategy.tell(points, values)
        used += size
        best = int(np.argmin(values))
        if values[best] < value:
            point, value = np.array(points[best]), values[best]
    return Found(point=point, value=value, start_value=start_value, evaluations=used)
