"""What is made of singular values: how many to keep, and factors for a receiver of any rank and scaling."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fedpeft.core.pairs import FactorError, pad_rank

Svd = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A thin singular value decomposition: u (m, q), s (q,) descending, vt (q, n)."""


def keep_energy(s: np.ndarray, energy: float) -> int:
    """Return the smallest p with ``sum_{i <= p} s_i^2 >= energy * sum_i s_i^2``.

    Args:
        s: singular values, descending.
        energy: share of the squared norm to keep, in (0, 1]; 1 keeps every value that is not zero, so ``compress`` a
            stack first if its numerically zero values are not wanted.

    Returns:
        0 .. len(s); 0 only where all values are zero.

    Raises:
        FactorError: the energy is out of range.

    Example:
        Squares 9, 4, 1 of 14: the first two hold 13 / 14 = 0.928...

        >>> [keep_energy(np.float64([3, 2, 1]), energy) for energy in (0.6, 0.9, 0.93, 1)]
        [1, 2, 3, 3]
    """
    if not 0 < energy <= 1:
        raise FactorError(f"energy must be in (0, 1], got {energy}")
    kept = int(np.count_nonzero(s))
    if energy == 1 or kept == 0:
        # A running sum would lose values below 1e-8 of the largest, which "all of the energy" must not.
        return kept
    sums = np.cumsum(np.square(s, dtype=np.float64))
    return int(np.argmax(sums >= energy * sums[-1])) + 1


def split(
    u: np.ndarray, s: np.ndarray, vt: np.ndarray, rank: int, scaling: float, balance: Literal["b", "even"] = "b"
) -> tuple[np.ndarray, np.ndarray]:
    """Return LoRA factors A, B of a receiver, with ``scaling B A = u_r diag(s_r) vt_r``.

    ``b`` (FlexLoRA, arXiv:2402.11505): ``B = u_r diag(s_r) / scaling``, ``A = vt_r``. ``even``: ``B = u_r D``,
    ``A = D vt_r``, ``D = diag(sqrt(s_r / scaling))``. Where there are fewer singular values than the rank, rows of A
    and columns of B are zero. Such a direction has no gradient: a caller that trains on should fill A's rows. So it is
    with ``even`` where a singular value is zero; ``b`` keeps A's rows orthonormal there.

    Args:
        u: (m, q).
        s: (q,), descending, not negative.
        vt: (q, n).
        rank: the receiver's rank, 1 or more.
        scaling: the receiver's alpha / rank, positive.
        balance: which factor carries the singular values.

    Returns:
        A (rank, n) and B (m, rank), float64.

    Raises:
        FactorError: rank, scaling or balance is out of range.

    Example:
        >>> A, B = split(np.float64([[1], [0]]), np.float64([8]), np.float64([[0, 1]]), rank=2, scaling=2)
        >>> A.tolist(), B.tolist()
        ([[0.0, 1.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]])
    """
    if rank < 1:
        raise FactorError(f"rank must be 1 or more, got {rank}")
    if not 0 < scaling < math.inf:
        raise FactorError(f"scaling must be positive, got {scaling}")
    if balance not in ("b", "even"):
        raise FactorError(f"balance must be b or even, got {balance}")
    u, s, vt = u[:, :rank], s[:rank] / scaling, vt[:rank]
    if balance == "b":
        return pad_rank(vt, u * s, rank)
    root = np.sqrt(s)
    return pad_rank(root[:, None] * vt, u * root, rank)
