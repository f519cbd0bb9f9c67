"""The largest singular values of a sparse matrix, without ever forming it where it is large."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedpeft.core.masks import scatter
from fedpeft.core.seeds import rng
from fedpeft.core.singular import Svd

MOST_DENSE = 1024
"""Smaller side of a matrix up to which a dense decomposition is quicker."""
EVERY = 16
"""Fewest steps between two looks at what was found."""
TOLERANCE = 1e-8
"""Error of a singular pair, relative to the largest value, at which it counts as found: below float32's rounding."""
CLOSED = 1e-6
"""Length, relative to the matrix's norm, below which what leads out of a basis does not count."""
TINY = 1e-13
"""Length, relative to the matrix's norm, below which a vector is rounding."""

Map = Callable[[np.ndarray], np.ndarray]


def sparse_svd(
    values: np.ndarray, indices: np.ndarray, shape: tuple[int, int], rank: int, *, most_dense: int = MOST_DENSE
) -> Svd:
    """Return the largest singular values of the matrix that holds ``values`` at ``indices``, and their vectors.

    Small matrices are decomposed whole. For large ones Golub and Kahan's bidiagonalisation (1965) runs, every vector
    made orthogonal to all before it, until the wanted pairs stand: some hundred products with the nnz values, and
    O(k (m + n)) numbers for k steps. Of singular values that coincide exactly it may miss a copy; those of trained
    values do not.

    Args:
        values: (nnz,).
        indices: (nnz,) flat C-order indices into ``shape``, each once.
        shape: (m, n).
        rank: how many are wanted, 1 .. min(m, n).
        most_dense: smaller side up to which the matrix is decomposed whole.

    Returns:
        u (m, q), s (q,) descending and vt (q, n), float64, q = ``rank`` or more.

    Example:
        [[0, 3], [4, 0]]:

        >>> u, s, vt = sparse_svd(np.float64([3, 4]), np.array([1, 2]), (2, 2), 1)
        >>> s.round(12).tolist()
        [4.0, 3.0]
    """
    if min(shape) <= most_dense:
        return np.linalg.svd(scatter(values, indices, shape), full_matrices=False)
    x = values.astype(np.float64)
    rows, columns = np.divmod(indices, shape[1])

    def times(v: np.ndarray) -> np.ndarray:
        return np.bincount(rows, x * v[columns], minlength=shape[0])

    def back(u: np.ndarray) -> np.ndarray:
        return np.bincount(columns, x * u[rows], minlength=shape[1])

    size = float(np.linalg.norm(x))
    if shape[0] >= shape[1]:
        return _bidiagonalise(times, back, shape, rank, size)
    # Vectors of the smaller side come first: when there are as many as it is long, nothing lies outside them.
    u, s, vt = _bidiagonalise(back, times, (shape[1], shape[0]), rank, size)
    return vt.T, s, u.T


def _bidiagonalise(times: Map, back: Map, shape: tuple[int, int], rank: int, size: float) -> Svd:
    """Return the ``rank`` largest singular pairs of a map (m, n), m >= n, of Frobenius norm ``size``."""
    source, most = rng(0, "sparse-svd"), shape[1]
    left, right = _Basis(shape[0], source), _Basis(shape[1], source)
    alphas: list[float] = []
    betas, check = [0.0], max(rank, EVERY)
    right.add(source.normal(size=shape[1]), 0.0)
    while True:
        v = right.last
        alphas.append(left.add(times(v) - (betas[-1] * left.last if alphas else 0.0), TINY * size))
        step = len(alphas)
        beta = 0.0 if step == most else right.add(back(left.last) - alphas[-1] * v, TINY * size)
        betas.append(beta)
        # A basis that has just closed says nothing of what lies outside it.
        if step == most or (step >= check and beta > CLOSED * size):
            check = step + max(EVERY, step // 5)
            p, s, qt = np.linalg.svd(np.diag(alphas) + np.diag(betas[1:-1], 1))
            if step == most or (beta * np.abs(p[-1, :rank]) <= TOLERANCE * s[0]).all():
                return left.vectors(step) @ p[:, :rank], s[:rank], qt[:rank] @ right.vectors(step).T


class _Basis:
    """Orthonormal vectors, one added after the other."""

    def __init__(self, length: int, source: np.random.Generator) -> None:
        self._source, self._count = source, 0
        self._columns = np.zeros((length, 4 * EVERY), order="F")

    @property
    def last(self) -> np.ndarray:
        """The newest vector."""
        column: np.ndarray = self._columns[:, self._count - 1]
        return column

    def vectors(self, count: int) -> np.ndarray:
        """Return the first vectors as columns."""
        return self._columns[:, :count]

    def add(self, vector: np.ndarray, tiny: float) -> float:
        """Add what of a vector is new, at length 1, and return its length; where nothing is, a random one and 0."""
        new = self._outside(vector)
        length = float(np.linalg.norm(new))
        if length <= tiny:
            new, length = self._outside(self._source.normal(size=len(vector))), 0.0
        if self._count == self._columns.shape[1]:
            self._columns = np.asfortranarray(np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1))
        self._columns[:, self._count] = new / np.linalg.norm(new)
        self._count += 1
        return length

    def _outside(self, vector: np.ndarray) -> np.ndarray:
        known = self.vectors(self._count)
        # Twice is enough for orthogonality to rounding.
        for _ in range(2):
            vector = vector - known @ (known.T @ vector)
        return vector
