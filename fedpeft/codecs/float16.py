"""Half precision: half the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.codecs.base import PLAIN, NumberFormat, Shape
from fedpeft.core.errors import WireError
from fedpeft.core.types import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Float16(NumberFormat):
    """Rounds each value to the nearest float16 (IEEE 754 binary16: 11 significant bits, steps of 2^-24 near zero).

    Bound (max norm): ``max(2^-11 max|d|, 2^-25)``. A change that rounds beyond 65504 is refused.

    Args:
        error_feedback: keep the rounding error on the client for its next round.

    Example:
        >>> Float16().pack(np.float32([0.1]), np.random.default_rng(0))[""]
        array([0.1], dtype=float16)
    """

    error_feedback: bool = False

    name = "float16"

    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        return {PLAIN: TensorSpec(shape, "float16")}

    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        with np.errstate(over="ignore"):
            half = change.astype(np.float16)
        if not np.isfinite(half).all():
            raise WireError("finite", "a change does not fit float16, at most 65504 (lower client.lr, or codec=int8)")
        return {PLAIN: half}

    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        return parts[PLAIN].astype(np.float32)

    def _bound(self, change: np.ndarray) -> float:
        return max(2.0**-11 * float(np.abs(change).max()), 2.0**-25)
