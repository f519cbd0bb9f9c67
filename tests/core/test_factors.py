"""Sums, norms and singular values of low-rank changes equal those of the dense products, which nobody forms."""

from __future__ import annotations

import itertools
import math
import re
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from low_rank import EXACT, assert_close, dense, every_case, parts_of, random_factors, summed

from fedpeft.core.errors import FedPeftError
from fedpeft.core.factors import (
    FactorError,
    Factors,
    Pair,
    compress,
    distance,
    factors_of,
    inner,
    lora_pairs,
    norm,
    split,
    stack,
    svd,
    truncate,
)


@every_case
def test_stack_is_the_weighted_sum(m: int, n: int, ranks: tuple[int, ...]) -> None:
    parts, weights = parts_of(m, n, ranks)
    both = stack(parts, weights)
    assert (both.rank, both.shape) == (sum(ranks), (m, n))
    assert_close(dense(both), summed(parts, weights))


@every_case
def test_stack_does_not_depend_on_the_order(m: int, n: int, ranks: tuple[int, ...]) -> None:
    parts, weights = parts_of(m, n, ranks)
    expected = stack(parts, weights)
    for order in itertools.permutations(range(len(parts))):
        other = stack([parts[i] for i in order], [weights[i] for i in order])
        assert_close(dense(other), dense(expected))
        assert_close(dense(truncate(other, 2)), dense(truncate(expected, 2)))


def test_stack_by_hand() -> None:
    """2 (1, 0)^T (1, 1, 0) - (1, 1)^T (0, 1, 1) = [[2, 2, 0], [0, 0, 0]] - [[0, 1, 1], [0, 1, 1]]; weight 2 is on a."""
    one = Factors(b=np.float32([[1], [0]]), a=np.float32([[1, 1, 0]]))
    two = Factors(b=np.float32([[1], [1]]), a=np.float32([[0, 1, 1]]))
    both = stack([one, two], [2, -1])
    assert both.b.tolist() == [[1, 1], [0, 1]]
    assert both.a.tolist() == [[2, 2, 0], [0, -1, -1]]
    assert dense(both).tolist() == [[2, 1, -1], [0, -1, -1]]


def test_one_part_is_itself() -> None:
    part = random_factors(np.random.default_rng(0), 4, 3, 2)
    same = stack([part], [1])
    assert same.b.tobytes() == part.b.tobytes()
    assert same.a.tobytes() == part.a.tobytes()


def test_arithmetic_is_float64_whatever_comes_in() -> None:
    """(1 + 2^-23) 3 = 3 + 3 2^-23 needs 25 bits, float32 has 24; half precision and integers are widened as well."""
    odd = np.float32(1) + np.float32(2**-23)
    tensors = {"x.lora_A.weight": np.float32([[1]]), "x.lora_B.weight": np.array([[odd]])}
    f = factors_of(tensors, *lora_pairs(tensors), scaling=3)
    assert f.b.dtype == f.a.dtype == np.float64
    assert dense(f).item() == 3 + 3 * 2**-23
    narrow = Factors(b=np.float16([[0.5]]), a=np.array([[3]]))
    assert narrow.b.dtype == narrow.a.dtype == np.float64


def test_nothing_is_shared_with_what_came_in() -> None:
    b, a = np.ones((2, 1)), np.ones((1, 2))
    f = Factors(b=b, a=a)
    b[:] = a[:] = 5
    assert dense(f).tolist() == [[1, 1], [1, 1]]


# Products and norms


@every_case
def test_inner_products_and_norms(m: int, n: int, ranks: tuple[int, ...]) -> None:
    f, g = stack(*parts_of(m, n, ranks, seed=1)), stack(*parts_of(m, n, ranks[::-1], seed=2))
    size = np.linalg.norm(dense(f)) * np.linalg.norm(dense(g))
    assert abs(inner(f, g) - np.sum(dense(f) * dense(g))) <= EXACT * size
    assert inner(f, g) == pytest.approx(inner(g, f), rel=0, abs=EXACT * size)
    assert norm(f) == pytest.approx(np.linalg.norm(dense(f)), rel=EXACT)
    assert inner(f, f) == pytest.approx(norm(f) ** 2, rel=EXACT)
    assert distance(f, g) == pytest.approx(np.linalg.norm(dense(f) - dense(g)), rel=EXACT)
    assert distance(f, g) == pytest.approx(distance(g, f), rel=EXACT)


@pytest.mark.parametrize("exponent", [0, 4, 8, 12])
def test_small_distances_are_not_lost(exponent: int) -> None:
    """|f - (1 + e) f| = e |f|: from squares alone, 1e-12 would drown in 1e-8. Rounding leaves 1e-15 of the norm."""
    f = random_factors(np.random.default_rng(0), 30, 20, 4)
    e = 10.0**-exponent
    assert distance(f, stack([f], [1 + e])) == pytest.approx(e * norm(f), rel=1e-9, abs=1e-14 * norm(f))


def test_fedit_error_is_the_covariance_of_the_factors() -> None:
    """sum p_k B_k A_k - Bbar Abar = sum p_k (B_k - Bbar)(A_k - Abar), since sum p_k (B_k - Bbar) = 0."""
    rng = np.random.default_rng(0)
    parts, weights = [random_factors(rng, 8, 6, 2) for _ in range(5)], rng.dirichlet(np.ones(5))
    mean = Factors(
        b=sum(w * p.b for w, p in zip(weights, parts, strict=True)),  # type: ignore[arg-type]
        a=sum(w * p.a for w, p in zip(weights, parts, strict=True)),  # type: ignore[arg-type]
    )
    covariance = stack([Factors(b=p.b - mean.b, a=p.a - mean.a) for p in parts], weights.tolist())
    exact = stack(parts, weights.tolist())
    assert distance(stack([exact, mean], [1, -1]), covariance) <= EXACT * norm(exact)
    assert norm(covariance) > 0.1 * norm(exact)


def test_the_product_is_never_formed() -> None:
    """2,000 x 1,500 in float64 would be 24 MB; the factors of rank 6 are 168 kB, and there are a few copies of them."""
    rng = np.random.default_rng(0)
    parts = [random_factors(rng, 2_000, 1_500, 2) for _ in range(3)]
    tracemalloc.start()
    f = stack(parts, [0.2, 0.3, 0.5])
    A, B = split(*svd(f), rank=4, scaling=2.0)
    sizes = norm(f), distance(f, Factors(b=2 * B, a=A)), inner(f, f), norm(compress(f))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    assert sizes[0] ** 2 == pytest.approx(sizes[2], rel=EXACT)
    assert 0 < sizes[1] < sizes[0] == pytest.approx(sizes[3], rel=EXACT)


ONE = Factors(b=np.ones((2, 1)), a=np.ones((1, 3)))
OTHER = Factors(b=np.ones((3, 1)), a=np.ones((1, 2)))
CONVOLUTION = {"a": np.ones((1, 3, 1, 1)), "b": np.ones((2, 1))}
REFUSED = [
    (lambda: Factors(b=np.ones((2, 1)), a=np.ones((2, 3))), "(m, r) and a (r, n), got (2, 1) and (2, 3)"),
    (lambda: Factors(b=np.ones(2), a=np.ones((2, 3))), "got (2,) and (2, 3)"),
    (lambda: Factors(b=np.ones((0, 1)), a=np.ones((1, 3))), "at least 1 x 1, got 0 x 3"),
    (lambda: Factors(b=np.full((2, 1), math.nan), a=np.ones((1, 3))), "got NaN or infinity in b"),
    (lambda: Factors(b=np.ones((2, 1)), a=np.full((1, 3), math.inf)), "got NaN or infinity in a"),
    (lambda: factors_of(CONVOLUTION, Pair(module="", a="a", b="b")), "got (2, 1) and (1, 3, 1, 1)"),
    (lambda: stack([], []), "got 0 parts, 0 weights"),
    (lambda: stack([ONE, ONE], [1]), "got 2 parts, 1 weights"),
    (lambda: stack([ONE], [math.inf]), "must be finite, got [inf]"),
    (lambda: stack([ONE, OTHER], [1, 1]), "one shape, got (2, 3), (3, 2)"),
    (lambda: inner(ONE, OTHER), "one shape, got (2, 3) and (3, 2)"),
    (lambda: distance(ONE, OTHER), "one shape, got (2, 3), (3, 2)"),
    (lambda: truncate(ONE, -1), "rank must be 0 or more, got -1"),
    (lambda: compress(ONE, -1e-9), "tolerance must be 0 or more, got -1e-09"),
    (lambda: compress(ONE, math.nan), "tolerance must be 0 or more, got nan"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_input_is_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(FactorError, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, FedPeftError)
    assert "\n" not in str(caught.value)
