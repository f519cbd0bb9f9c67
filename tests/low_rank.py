"""Low-rank changes to test with, and what they are compared with: dense sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedpeft.core.factors import Factors, factors_of, lora_pairs

EXACT = 1e-12
"""Relative to the change's norm: some thousand roundings of float64 at these sizes, and far below float32's 6e-8."""

SHAPES = [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1), (1, 1), (12, 3)]
RANKS = [(1,), (4,), (2, 3), (1, 2, 4), (8, 8, 8)]
CASES = [(m, n, ranks) for (m, n), ranks in itertools.product(SHAPES, RANKS)]
every_case = pytest.mark.parametrize(("m", "n", "ranks"), CASES)


def random_factors(rng: np.random.Generator, m: int, n: int, rank: int) -> Factors:
    return Factors(b=rng.normal(size=(m, rank)), a=rng.normal(size=(rank, n)))


def parts_of(m: int, n: int, ranks: tuple[int, ...], seed: int = 0) -> tuple[list[Factors], list[float]]:
    """Clients of these ranks, whose scalings and weights differ too."""
    rng = np.random.default_rng([seed, m, n, *ranks])
    tensors = [
        {"x.lora_A.weight": rng.normal(size=(r, n)).astype(np.float32), "x.lora_B.weight": rng.normal(size=(m, r))}
        for r in ranks
    ]
    (pair,) = lora_pairs(tensors[0])
    parts = [factors_of(one, pair, scaling=16 / r) for one, r in zip(tensors, ranks, strict=True)]
    return parts, rng.dirichlet(np.ones(len(ranks))).tolist()


def dense(f: Factors) -> np.ndarray:
    return f.b @ f.a


def summed(parts: list[Factors], weights: list[float]) -> np.ndarray:
    """The plain sum of products, one rank at a time: it shares no step with what is tested."""
    total = np.zeros(parts[0].shape)
    for part, weight in zip(parts, weights, strict=True):
        for i in range(part.rank):
            total += weight * np.outer(part.b[:, i], part.a[i])
    return total


def assert_close(got: np.ndarray, expected: np.ndarray, scale: float | None = None) -> None:
    size = np.linalg.norm(expected) if scale is None else scale
    assert np.linalg.norm(got - expected) <= EXACT * size


def orthonormal(columns: np.ndarray) -> bool:
    return np.allclose(columns.T @ columns, np.eye(columns.shape[1]), rtol=0, atol=1e-13)
