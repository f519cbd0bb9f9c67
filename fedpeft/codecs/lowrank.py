"""Changes of matrices as products of two thin factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.codecs.base import PLAIN, Reducer, Shape, as_matrix, check_finite
from fedpeft.core.errors import ConfigError
from fedpeft.core.types import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank(Reducer):
    """Sends the best approximation of rank r of each matrix: ``U_r S_r V_r^T`` of its SVD (Eckart-Young).

    ``left = (U_r S_r^(1/2))^T`` of shape (r, rows) and ``right = S_r^(1/2) V_r^T`` of shape (r, columns): a component
    is a row of each, so that a number format after it has a scale for each component. Tensors of more than two axes
    are read as their first axis against the rest; vectors, and matrices that r does not make smaller, travel as they
    are. The product is summed component by component in float32, without BLAS: every machine gets the same bits.

    Bound (max norm): singular value r + 1, which bounds the spectral norm of what is left, plus float32 rounding.

    Args:
        rank: components of each matrix that travel, 1..1024.
        error_feedback: keep on the client what stayed behind and add it to its next change.

    Raises:
        ConfigError: the rank is out of range.

    Example:
        >>> change = np.outer(np.arange(40), np.ones(50)).astype(np.float32)
        >>> parts = LowRank(rank=1).pack(change, np.random.default_rng(0))
        >>> {part: array.shape for part, array in parts.items()}
        {'left': (1, 40), 'right': (1, 50)}
    """

    rank: int
    error_feedback: bool = True

    name = "low_rank"

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= 1024:
            raise ConfigError(f"rank must be in 1..1024, got {self.rank!r} (set codec's rank)")

    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        if len(shape) < 2:
            return {PLAIN: TensorSpec(shape, "float32")}
        rows, columns = as_matrix(shape)
        kept = min(self.rank, rows, columns)
        return {"left": TensorSpec((kept, rows), "float32"), "right": TensorSpec((kept, columns), "float32")}

    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        left, right, _ = self._factors(change)
        return {"left": left, "right": right}

    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        for name in ("left", "right"):
            check_finite(f"{name} factors", parts[name])
        matrix = np.zeros(as_matrix(shape), np.float32)
        for left, right in zip(parts["left"], parts["right"], strict=True):
            matrix += left[:, np.newaxis] * right
        return matrix.reshape(shape)

    def _bound(self, change: np.ndarray) -> float:
        left, right, rest = self._factors(change)
        products = np.abs(left).max(axis=1) * np.abs(right).max(axis=1)
        return rest + _rounding(len(left), float(products.sum(dtype=np.float64)))

    def _spread(self, parts: Mapping[str, np.ndarray], errors: Mapping[str, float]) -> float:
        # |(l + e)(r + f) - l r| <= |e| |r| + |l| |f| + |e| |f| for each component, and rounding of the larger product.
        left, right = (np.abs(parts[name]).max(axis=1).astype(np.float64) for name in ("left", "right"))
        moved = float(((left + errors["left"]) * (right + errors["right"]) - left * right).sum())
        return moved + _rounding(len(left), float((left * right).sum()) + moved)

    def _factors(self, change: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return both factors and the first singular value that stays behind."""
        matrix = change.reshape(as_matrix(change.shape)).astype(np.float64)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        kept = min(self.rank, len(s))
        root = np.sqrt(s[:kept, np.newaxis])
        left, right = ((root * side[:kept]).astype(np.float32) for side in (u.T, vt))
        return left, right, float(s[kept]) if kept < len(s) else 0.0


def _rounding(kept: int, products: float) -> float:
    """Return what float32 adds: both factors, the product and each sum round once, by 2^-24 or the last denormal."""
    return (kept + 4) * 2.0**-24 * products + kept * 2.0**-149
