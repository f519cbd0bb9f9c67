"""The largest singular values of sparse matrices: as numpy's dense decomposition finds them."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.masks import mask_indices, scatter
from fedpeft.core.sparse_svd import sparse_svd


def sparse(m: int, n: int, density: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    indices = mask_indices(seed, "x", (m, n), density)
    return np.random.default_rng(seed).normal(size=len(indices)), indices


def assert_orthonormal(columns: np.ndarray) -> None:
    assert np.allclose(columns.T @ columns, np.eye(columns.shape[1]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize(("m", "n", "rank"), [(60, 90, 5), (90, 60, 5), (70, 70, 1), (20, 50, 20), (33, 33, 17)])
def test_it_finds_what_the_dense_one_finds(m: int, n: int, rank: int, density: float) -> None:
    """Singular values of random masks lie close together, and at 2 % many are zero or stand alone."""
    values, indices = sparse(m, n, density)
    dense = scatter(values, indices, (m, n))
    s = np.linalg.svd(dense, compute_uv=False)
    ours = sparse_svd(values, indices, (m, n), rank, most_dense=0)
    assert (ours[0].shape, ours[1].shape, ours[2].shape) == ((m, rank), (rank,), (rank, n))
    assert np.allclose(ours[1], s[:rank], rtol=0, atol=1e-7 * s[0])
    assert_orthonormal(ours[0])
    assert_orthonormal(ours[2].T)
    error = np.linalg.norm(dense - (ours[0] * ours[1]) @ ours[2])
    assert error <= np.linalg.norm(s[rank:]) + 1e-6 * s[0], "no change of this rank is nearer"


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_matrix_of_low_rank_or_none(rank: int) -> None:
    """Rank 1, every place masked, and zero: the other vectors are orthonormal all the same."""
    shape = (40, 30)
    product = np.outer(np.arange(1, 41), np.arange(30)).astype(float)
    everywhere = np.arange(1200)
    for dense in (product, np.zeros(shape)):
        u, s, vt = sparse_svd(dense.ravel(), everywhere, shape, rank, most_dense=0)
        assert np.allclose((u * s) @ vt, dense, atol=1e-7 * max(1.0, np.linalg.norm(dense)))
        assert_orthonormal(u)
        assert_orthonormal(vt.T)


def test_small_matrices_are_decomposed_whole() -> None:
    values, indices = sparse(8, 6, 0.5)
    assert [len(part) for part in sparse_svd(values, indices, (8, 6), 2)] == [8, 6, 6]


def test_it_is_the_same_every_time() -> None:
    values, indices = sparse(50, 40, 0.1)
    one, other = (sparse_svd(values, indices, (50, 40), 4, most_dense=0) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_values_that_come_twice_are_found_twice() -> None:
    """16 values, each at two places of a diagonal: from one start vectors end after 16 steps, with one copy each."""
    diagonal = np.repeat(np.arange(16.0, 0.0, -1.0), 2)
    _, s, _ = sparse_svd(diagonal, np.arange(32) * 32 + np.arange(32), (32, 32), 16, most_dense=0)
    assert np.allclose(s, diagonal[:16], atol=1e-6)
