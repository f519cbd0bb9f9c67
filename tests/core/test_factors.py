"""Sums, norms and singular values of low-rank changes equal those of the dense products, which nobody forms."""

from __future__ import annotations

import itertools
import math
import re
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from fedpeft.core.errors import FedPeftError
from fedpeft.core.factors import (
    FactorError,
    Factors,
    Pair,
    compress,
    distance,
    factors_of,
    inner,
    keep_energy,
    lora_pairs,
    norm,
    split,
    stack,
    svd,
    truncate,
)

EXACT = 1e-12
"""Relative to the change's norm: some thousand roundings of float64 at these sizes, and far below float32's 6e-8."""

SHAPES = [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1), (1, 1), (12, 3)]
RANKS = [(1,), (4,), (2, 3), (1, 2, 4), (8, 8, 8)]
CASES = [(m, n, ranks) for (m, n), ranks in itertools.product(SHAPES, RANKS)]
every_case = pytest.mark.parametrize(("m", "n", "ranks"), CASES)


def random_factors(rng: np.random.Generator, m: int, n: int, rank: int, dtype: str = "float64") -> Factors:
    return Factors(b=rng.normal(size=(m, rank)).astype(dtype), a=rng.normal(size=(rank, n)).astype(dtype))


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


# Sums


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


# Singular values


@every_case
def test_svd_is_that_of_the_dense_product(m: int, n: int, ranks: tuple[int, ...]) -> None:
    f = stack(*parts_of(m, n, ranks))
    u, s, vt = svd(f)
    q = min(sum(ranks), m, n)
    assert (u.shape, s.shape, vt.shape) == ((m, q), (q,), (q, n))
    assert orthonormal(u) and orthonormal(vt.T)
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    assert_close(u * s @ vt, dense(f))
    assert_close(s, np.linalg.svd(dense(f), compute_uv=False)[:q])


@pytest.mark.parametrize(("m", "n", "rank"), [(7, 5, 3), (5, 7, 3), (4, 4, 9)])
def test_zero_changes_and_new_adapters(m: int, n: int, rank: int) -> None:
    """LoRA starts from B = 0: singular values of zero, with vectors that are orthonormal all the same."""
    rng = np.random.default_rng(0)
    for f in (
        Factors(b=np.zeros((m, rank)), a=rng.normal(size=(rank, n))),
        Factors(b=rng.normal(size=(m, rank)), a=np.zeros((rank, n))),
        Factors(b=np.zeros((m, 0)), a=np.zeros((0, n))),
    ):
        u, s, vt = svd(f)
        assert not s.any() and orthonormal(u) and orthonormal(vt.T)
        assert (norm(f), inner(f, f), distance(f, f), keep_energy(s, 0.9), compress(f).rank) == (0, 0, 0, 0, 0)
        assert compress(f).shape == truncate(f, 0).shape == (m, n)
        A, B = split(u, s, vt, rank=2, scaling=2.0)
        assert (A.shape, B.shape) == ((2, n), (m, 2)) and not (B @ A).any()


def test_rank_deficient_stacks() -> None:
    """The same client thrice: rank 9 on paper, 3 in fact, and sum of weights 6 times the one client."""
    one = random_factors(np.random.default_rng(0), 20, 15, 3)
    f = stack([one] * 3, [1, 2, 3])
    u, s, vt = svd(f)
    assert orthonormal(u) and orthonormal(vt.T)
    assert (s[3:] <= EXACT * s[0]).all()
    assert compress(f).rank == 3
    assert_close(dense(compress(f)), 6 * dense(one))


@pytest.mark.parametrize("seed", range(20))
def test_signs_are_fixed_by_the_largest_entry(seed: int) -> None:
    """The same change from other factors (a rotation between b and a, both signs turned) has the same vectors."""
    rng = np.random.default_rng(seed)
    f = random_factors(rng, 9, 6, 4)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    u, s, vt = svd(f)
    for other in (Factors(b=-f.b, a=-f.a), Factors(b=f.b @ turn, a=turn.T @ f.a)):
        again = svd(other)
        for x, y in zip((u, s, vt), again, strict=True):
            assert np.allclose(x, y, rtol=0, atol=1e-10)
    columns = np.arange(4)
    assert (u[np.abs(u).argmax(axis=0), columns] > 0).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("noise", [0, 1e-15, -1e-15])
def test_first_of_equally_large_entries_fixes_the_sign(sign: int, noise: float) -> None:
    """b = (1, -1)^T: which entry of u is the larger hangs on a rounding, and must not decide."""
    u, _, vt = svd(Factors(b=sign * np.float64([[1 + noise], [-1]]), a=sign * np.float64([[2, 0]])))
    assert u[0, 0] > 0 > u[1, 0] and vt[0, 0] > 0


# Cutting


@every_case
def test_truncation_leaves_the_tail_of_the_singular_values(m: int, n: int, ranks: tuple[int, ...]) -> None:
    f = stack(*parts_of(m, n, ranks))
    s = np.linalg.svd(dense(f), compute_uv=False)
    for rank in range(m + n):
        cut = truncate(f, rank)
        assert cut.rank == min(rank, m, n, f.rank)
        tail = float(np.sqrt(np.sum(s[rank:] ** 2)))
        assert distance(f, cut) == pytest.approx(tail, rel=EXACT, abs=EXACT * s[0])
    assert dense(truncate(svd(f), 2)).tobytes() == dense(truncate(f, 2)).tobytes()


def test_truncation_by_hand() -> None:
    """diag(3, 2) b-side times a 2 x 3 identity: rank 1 keeps the 3, and 2 is lost."""
    f = Factors(b=np.float64([[3, 0], [0, 2]]), a=np.eye(2, 3))
    assert np.allclose(dense(truncate(f, 1)), [[3, 0, 0], [0, 0, 0]], rtol=0, atol=1e-15)
    assert distance(f, truncate(f, 1)) == pytest.approx(2, rel=EXACT)


@every_case
def test_compression_keeps_the_change(m: int, n: int, ranks: tuple[int, ...]) -> None:
    f = stack(*parts_of(m, n, ranks))
    small = compress(f)
    assert small.rank == np.linalg.matrix_rank(dense(f)) <= min(m, n)
    assert_close(dense(small), dense(f))


def test_compression_keeps_what_is_small_but_there() -> None:
    """1e-9 of the largest stays at the default tolerance and goes at 1e-8; at 0 nothing that is not zero goes."""
    f = Factors(b=np.diag([1.0, 1e-9, 1e-14]), a=np.eye(3))
    assert [compress(f, tolerance).rank for tolerance in (1e-8, 1e-12, 0)] == [1, 2, 3]


# Factors for a receiver


@every_case
@pytest.mark.parametrize("balance", ["b", "even"])
def test_receivers_of_any_rank_and_scaling_get_the_same_change(
    m: int, n: int, ranks: tuple[int, ...], balance: str
) -> None:
    f = stack(*parts_of(m, n, ranks))
    u, s, vt = svd(f)
    for rank, scaling in itertools.product((1, 2, 5, 13), (0.25, 2.0)):
        A, B = split(u, s, vt, rank, scaling, balance)  # type: ignore[arg-type]
        assert (A.shape, B.shape, A.dtype, B.dtype) == ((rank, n), (m, rank), np.float64, np.float64)
        assert_close(scaling * B @ A, dense(truncate(f, rank)), scale=norm(f))
        q = min(rank, len(s))
        assert not A[q:].any() and not B[:, q:].any()
        if balance == "b":
            assert orthonormal(A[:q].T)
        else:
            assert np.allclose(np.linalg.norm(A, axis=1), np.linalg.norm(B, axis=0), rtol=EXACT, atol=0)


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
    """20,000 x 10,000 in float64 would be 1.6 GB; the factors of rank 6 are 1.4 MB and their copies a few more."""
    rng = np.random.default_rng(0)
    parts = [random_factors(rng, 20_000, 10_000, 2) for _ in range(3)]
    tracemalloc.start()
    f = stack(parts, [0.2, 0.3, 0.5])
    A, B = split(*svd(f), rank=4, scaling=2.0)
    sizes = norm(f), distance(f, Factors(b=2 * B, a=A)), inner(f, f), norm(compress(f))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
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
