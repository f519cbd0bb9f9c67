"""Singular values, cuts and receivers' factors from the small core are those of the dense product."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from low_rank import EXACT, assert_close, dense, every_case, orthonormal, parts_of, random_factors

from fedpeft.core.factors import (
    Factors,
    compress,
    distance,
    inner,
    keep_energy,
    norm,
    split,
    stack,
    svd,
    truncate,
)

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


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_compression_keeps_what_is_small_but_there(scale: float) -> None:
    """1e-9 of the largest stays at the default tolerance and goes at 1e-8; at 0 nothing that is not zero goes."""
    f = Factors(b=scale * np.diag([1.0, 1e-9, 1e-14]), a=np.eye(3))
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
