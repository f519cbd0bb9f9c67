"""Only the largest changes travel; with error feedback the others wait (arXiv:1809.07599, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.codecs.base import Reducer, Shape
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Reducer):
    """Sends the ``k = max(1, round(fraction n))`` values of largest size in each tensor of n; among equals the first.

    Where they lie travels as k uint32 indices or as a bitmap of n bits, whichever is smaller: the bitmap from a
    fraction of 1/32 on. Bound (max norm): the largest value that stays behind, which is exact.

    Args:
        fraction: share of each tensor that travels, in (0, 1].
        error_feedback: keep on the client what stayed behind and add it to its next change.

    Raises:
        ConfigError: the fraction is not in (0, 1].

    Example:
        >>> parts = TopK(fraction=0.01).pack(np.arange(200, dtype=np.float32), np.random.default_rng(0))
        >>> parts["indices"].tolist(), parts["values"].tolist()
        ([198, 199], [198.0, 199.0])
    """

    fraction: float
    error_feedback: bool = True

    name = "topk"
    sparse = True

    def __post_init__(self) -> None:
        number = isinstance(self.fraction, (int, float)) and not isinstance(self.fraction, bool)
        if not (number and 0 < self.fraction <= 1):
            raise ConfigError(f"fraction must be in (0, 1], got {self.fraction!r} (set codec's fraction)")

    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        size, kept = self._counts(shape)
        bitmap = TensorSpec(((size + 7) // 8,), "uint8")
        indices = TensorSpec((kept,), "uint32")
        where = bitmap if bitmap.num_bytes <= indices.num_bytes or size > 2**32 else indices
        return {"indices": where, "values": TensorSpec((kept,), "float32")}

    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        flat = change.reshape(-1)
        chosen = largest(np.abs(flat), self._counts(change.shape)[1])
        return {"indices": self._written(chosen, change.shape), "values": flat[chosen]}

    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        size, kept = self._counts(shape)
        flat = np.zeros(size, np.float32)
        flat[read_places(parts["indices"], size, kept)] = parts["values"]
        return flat.reshape(shape)

    def _bound(self, change: np.ndarray) -> float:
        left = np.abs(change.reshape(-1))
        left[largest(left, self._counts(change.shape)[1])] = 0
        return float(left.max())

    def _spread(self, parts: Mapping[str, np.ndarray], errors: Mapping[str, float]) -> float:
        return errors["values"]

    def _counts(self, shape: Shape) -> tuple[int, int]:
        size = int(np.prod(shape, dtype=np.int64))
        return size, min(size, max(1, round(self.fraction * size)))

    def _written(self, chosen: np.ndarray, shape: Shape) -> np.ndarray:
        if self._layout(shape)["indices"].dtype == "uint32":
            return chosen.astype(np.uint32)
        mask = np.zeros(self._counts(shape)[0], np.bool_)
        mask[chosen] = True
        return np.packbits(mask, bitorder="little")


def largest(sizes: np.ndarray, kept: int) -> np.ndarray:
    """Return the ascending indices of the ``kept`` largest of ``sizes``; among equals the first ones.

    Example:
        >>> largest(np.float32([1, 3, 1, 2, 1]), 3).tolist()
        [0, 1, 3]
    """
    if kept == 0:
        return np.zeros(0, np.int64)
    # A plain argpartition would leave the choice among equals to numpy's version and the machine.
    least = np.partition(sizes, len(sizes) - kept)[len(sizes) - kept]
    above = np.flatnonzero(sizes > least)
    equal = np.flatnonzero(sizes == least)[: kept - len(above)]
    return np.sort(np.concatenate([above, equal]))


def read_places(written: np.ndarray, size: int, kept: int) -> np.ndarray:
    """Return the ``kept`` ascending indices below ``size`` that indices or a bitmap (uint8) stand for.

    Raises:
        WireError: check ``indices``: out of range, not ascending, another number of bits, or bits behind the last.
    """
    if written.dtype == np.uint8:
        mask = np.unpackbits(written, bitorder="little")
        if mask[size:].any():
            raise WireError("indices", "bits behind the last value must be 0")
        if (found := int(np.count_nonzero(mask))) != kept:
            raise WireError("indices", f"the bitmap marks {found} values, expected {kept}")
        return np.flatnonzero(mask)
    if not (written[1:] > written[:-1]).all():
        raise WireError("indices", "indices must ascend strictly")
    if kept and int(written[-1]) >= size:
        raise WireError("indices", f"index {int(written[-1])} is outside a tensor of {size} values")
    return written
