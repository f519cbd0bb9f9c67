"""Low-rank changes as pairs of factors: sums, norms and singular values without ever forming the dense product.

A LoRA module changes its weight by ``s B A`` with B ``lora_B`` (m, r), A ``lora_A`` (r, n) and s = alpha / r. A sum of
such changes is again a pair of factors, of rank ``R = sum_k r_k`` (``stack``), and everything that an aggregation rule
asks of it costs O(R^2 (m + n + R)) instead of O(m n min(m, n)).

All arithmetic is float64, whatever comes in. A change of rank 0, ``b (m, 0)`` and ``a (0, n)``, is zero and allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.core.pairs import FactorError, Pair, cut_rank, lora_pairs, pad_rank
from fedpeft.core.singular import Svd, keep_energy, split

__all__ = [
    "FactorError",
    "Factors",
    "Pair",
    "Svd",
    "compress",
    "cut_rank",
    "distance",
    "factors_of",
    "inner",
    "keep_energy",
    "lora_pairs",
    "norm",
    "pad_rank",
    "split",
    "stack",
    "svd",
    "truncate",
]

TIE = 1e-9
"""Entries of a singular vector that are relatively this close in size count as equal when its sign is fixed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """A change of an (m, n) weight as the product ``b @ a``, with any scaling already folded in.

    Attributes:
        b: (m, r), kept as float64.
        a: (r, n), kept as float64.

    Raises:
        FactorError: the shapes do not fit, or a value is not finite.

    Example:
        >>> f = Factors(b=np.float32([[3], [4]]), a=np.float32([[0, 2]]))
        >>> f.rank, f.shape, (f.b @ f.a).tolist()
        (1, (2, 2), [[0.0, 6.0], [0.0, 8.0]])
    """

    b: np.ndarray
    a: np.ndarray

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            raise FactorError(f"factors must be b (m, r) and a (r, n), got {self.b.shape} and {self.a.shape}")
        if 0 in self.shape:
            raise FactorError(f"factors must change a weight of at least 1 x 1, got {self.shape[0]} x {self.shape[1]}")
        for name in ("b", "a"):
            value = getattr(self, name).astype(np.float64)
            if not np.isfinite(value).all():
                raise FactorError(f"factors must be finite, got NaN or infinity in {name} (drop this update)")
            object.__setattr__(self, name, value)

    @property
    def rank(self) -> int:
        """Number of columns of b and rows of a; the product's own rank may be less."""
        return int(self.b.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the product: out_features, in_features."""
        return int(self.b.shape[0]), int(self.a.shape[1])


def factors_of(tensors: Mapping[str, np.ndarray], pair: Pair, scaling: float = 1.0) -> Factors:
    """Return one module's change ``(scaling B) A``.

    Args:
        tensors: by name; must hold both names of the pair.
        pair: which module.
        scaling: alpha / rank of whoever trained the factors (sqrt(rank) below for rsLoRA).
    """
    return Factors(b=scaling * tensors[pair.b].astype(np.float64), a=tensors[pair.a])


def stack(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return ``sum_k w_k b_k a_k`` exactly, as factors of rank ``sum_k r_k``.

    ``b = [b_1 ... b_K]``, ``a = [w_1 a_1; ...; w_K a_K]`` (FLoRA, arXiv:2409.05976: weights go to one side only).

    Args:
        parts: at least one; equal shapes, any ranks.
        weights: one finite number for each part, of any sign; not normalised here.

    Raises:
        FactorError: no parts, unequal shapes, or not one finite weight for each part.

    Example:
        1 * (1)(2) + 3 * (4)(5) = 62:

        >>> one, two = (Factors(b=np.full((1, 1), x), a=np.full((1, 1), y)) for x, y in ((1, 2), (4, 5)))
        >>> both = stack([one, two], [1, 3])
        >>> both.b.tolist(), both.a.tolist(), (both.b @ both.a).item()
        ([[1.0, 4.0]], [[2.0], [15.0]], 62.0)
    """
    if not parts or len(parts) != len(weights):
        raise FactorError(f"a stack needs one weight for each part, got {len(parts)} parts, {len(weights)} weights")
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise FactorError(f"stacked changes must have one shape, got {', '.join(map(str, shapes))}")
    if not all(math.isfinite(weight) for weight in weights):
        raise FactorError(f"weights of a stack must be finite, got {list(weights)}")
    return Factors(
        b=np.concatenate([part.b for part in parts], axis=1),
        a=np.concatenate([weight * part.a for weight, part in zip(weights, parts, strict=True)]),
    )


def svd(f: Factors) -> Svd:
    """Return the singular value decomposition ``b a = u diag(s) vt`` from thin QR factors.

    With ``b = Q_b R_b`` and ``a^T = Q_a R_a`` it is enough to decompose the small ``R_b R_a^T = U diag(s) V^T``:
    ``u = Q_b U``, ``vt = V^T Q_a^T``. The sign of each pair of vectors is such that the largest entry of u's column is
    positive (the first of several equally large ones), so that it does not depend on the LAPACK at hand. Where singular
    values coincide, or are zero, any basis of their space is a right answer.

    Returns:
        u (m, q) and vt (q, n) with orthonormal columns and rows, s (q,) descending; q = min(rank, m, n).

    Example:
        [[0, 6], [0, 8]] = 10 (0.6, 0.8)^T (0, 1):

        >>> u, s, vt = svd(Factors(b=np.float64([[-3], [-4]]), a=np.float64([[0, -2]])))
        >>> u.round(12).tolist(), s.round(12).tolist(), (vt.round(12) + 0.0).tolist()
        ([[0.6], [0.8]], [10.0], [[0.0, 1.0]])
    """
    q_b, r_b = np.linalg.qr(f.b)
    q_a, r_a = np.linalg.qr(f.a.T)
    small_u, s, small_vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u, vt = q_b @ small_u, small_vt @ q_a.T
    size = np.abs(u)
    largest = (size >= (1 - TIE) * size.max(axis=0)).argmax(axis=0)
    sign = np.where(u[largest, np.arange(len(s))] < 0, -1.0, 1.0)
    return u * sign, s, vt * sign[:, None]


def truncate(change: Factors | Svd, rank: int) -> Factors:
    """Return the nearest change of at most this rank: ``b = u_r diag(s_r)``, ``a = vt_r`` (Eckart and Young).

    Its distance from the change is ``sqrt(sum_{i > rank} s_i^2)``.

    Args:
        change: factors, or what ``svd`` returned for them.
        rank: 0 or more; a rank above the number of singular values keeps all of them, without padding.

    Raises:
        FactorError: the rank is negative.
    """
    if rank < 0:
        raise FactorError(f"rank must be 0 or more, got {rank}")
    u, s, vt = svd(change) if isinstance(change, Factors) else change
    return Factors(b=u[:, :rank] * s[:rank], a=vt[:rank])


def compress(f: Factors, tolerance: float = 1e-12) -> Factors:
    """Return the same change by as few columns and rows as it needs: ``s_i <= tolerance * s_1`` is dropped.

    What is dropped is at most ``tolerance * sqrt(min(m, n))`` of the change's norm. A change of zero gets rank 0.

    Args:
        f: any change.
        tolerance: relative to the largest singular value, 0 or more.

    Raises:
        FactorError: the tolerance is negative.
    """
    if not tolerance >= 0:
        raise FactorError(f"tolerance must be 0 or more, got {tolerance}")
    u, s, vt = svd(f)
    return truncate((u, s, vt), int(np.count_nonzero(s > tolerance * s.max(initial=0.0))))


def inner(f: Factors, g: Factors) -> float:
    """Return the Frobenius product ``<b_f a_f, b_g a_g> = sum((b_f^T b_g) * (a_f a_g^T))``.

    Raises:
        FactorError: unequal shapes.

    Example:
        [[6], [8]] . [[1], [2]] = 6 + 16:

        >>> f = Factors(b=np.float64([[3], [4]]), a=np.float64([[2]]))
        >>> inner(f, Factors(b=np.float64([[1], [2]]), a=np.float64([[1]])))
        22.0
    """
    if f.shape != g.shape:
        raise FactorError(f"changes must have one shape, got {f.shape} and {g.shape}")
    return float(np.sum((f.b.T @ g.b) * (f.a @ g.a.T)))


def norm(f: Factors) -> float:
    """Return the Frobenius norm ``|b a| = |R_b R_a^T|`` with ``b = Q_b R_b``, ``a^T = Q_a R_a``.

    Its error is about 1e-16 of the norms of the columns' products, where the root of ``inner(f, f)`` would lose half of
    the digits as soon as columns cancel.

    Example:
        >>> round(norm(Factors(b=np.float64([[3], [4]]), a=np.float64([[0, 2]]))), 12)
        10.0
    """
    r_b, r_a = (np.asarray(np.linalg.qr(side, mode="r")) for side in (f.b, f.a.T))
    return float(np.linalg.norm(r_b @ r_a.T))


def distance(f: Factors, g: Factors) -> float:
    """Return the Frobenius norm of ``b_f a_f - b_g a_g``, right down to about 1e-16 of the larger of the two.

    It is the norm of the stacked difference; ``|f|^2 - 2 <f, g> + |g|^2`` would hide what lies below 1e-8.

    Raises:
        FactorError: unequal shapes.

    Example:
        >>> f, g = (Factors(b=np.float64([[x]]), a=np.float64([[2]])) for x in (1, 1 + 2**-40))
        >>> round(distance(f, g) * 2**40, 2)
        2.0
    """
    return norm(stack([f, g], [1.0, -1.0]))
