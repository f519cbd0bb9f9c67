"""Whole numbers with a scale for each row, rounded at random so that the mean is kept (as QSGD, arXiv:1610.02132)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.codecs.base import NumberFormat, Shape, as_matrix, check_finite
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec

SCALE_PER = ("row", "short_side")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole(NumberFormat):
    """What Int8 and Int4 share; they differ in levels and in how codes are stored."""

    scale_per: str = "row"
    error_feedback: bool = False

    unbiased = True
    levels = 0

    def __post_init__(self) -> None:
        if self.scale_per not in SCALE_PER:
            raise ConfigError(f"scale_per must be one of {', '.join(SCALE_PER)}, got {self.scale_per!r}")

    def _axis(self, shape: Shape) -> int:
        """Return the axis of the matrix along which values share a scale."""
        rows, columns = as_matrix(shape)
        return 1 if self.scale_per == "row" or rows <= columns else 0

    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        num_scales = as_matrix(shape)[1 - self._axis(shape)]
        return {"scales": TensorSpec((num_scales,), "float32"), "values": self._stored_spec(shape)}

    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        axis = self._axis(change.shape)
        matrix = change.reshape(as_matrix(change.shape))
        scales = row_scales(matrix, self.levels, axis)
        codes = round_at_random(matrix, np.expand_dims(scales, axis), rng)
        return {"scales": scales, "values": self._store(codes.reshape(change.shape))}

    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        scales, codes = parts["scales"], self._read(parts["values"], shape)
        check_finite("scales", scales)
        if (scales < 0).any():
            raise WireError("scales", f"scales must be at least 0, got {scales.min():g}")
        if (codes < -self.levels).any():
            raise WireError("codes", f"codes must be in {-self.levels}..{self.levels}, got {-self.levels - 1}")
        matrix = codes.reshape(as_matrix(shape)).astype(np.float32)
        matrix *= np.expand_dims(scales, self._axis(shape))
        return matrix.reshape(shape)

    def _bound(self, change: np.ndarray) -> float:
        scales = row_scales(change.reshape(as_matrix(change.shape)), self.levels, self._axis(change.shape))
        return float(scales.max()) * (1 + self.levels * 2.0**-23)

    @abstractmethod
    def _stored_spec(self, shape: Shape) -> TensorSpec: ...

    @abstractmethod
    def _store(self, codes: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _read(self, stored: np.ndarray, shape: Shape) -> np.ndarray: ...


class Int8(_Whole):
    """One signed byte a value: codes in -127..127, ``scale = max|row| / 127``.

    A value x becomes ``floor(x / scale)`` or the next whole number, the latter with probability
    ``x / scale - floor(x / scale)``, so that the mean over the generator is x. Bound (max norm): the largest scale,
    times 1 + 127 x 2^-23 for float32 rounding.

    Args:
        scale_per: ``row``: a scale for each index of the first axis of a matrix, one for a vector; ``short_side``: for
            each index of the shorter side, which for a lora_B (out, r) means r scales instead of out.
        error_feedback: keep the rounding error on the client for its next round.

    Raises:
        ConfigError: an unknown ``scale_per``.

    Example:
        >>> parts = Int8().pack(np.full(100, 2, np.float32), np.random.default_rng(0))
        >>> parts["values"][:3].tolist(), round(float(parts["scales"][0]) * 127, 4)
        ([127, 127, 127], 2.0)
    """

    __slots__ = ()

    name = "int8"
    levels = 127

    def _stored_spec(self, shape: Shape) -> TensorSpec:
        return TensorSpec(shape, "int8")

    def _store(self, codes: np.ndarray) -> np.ndarray:
        return codes

    def _read(self, stored: np.ndarray, shape: Shape) -> np.ndarray:
        return stored


class Int4(_Whole):
    """Half a byte a value: codes in -7..7, ``scale = max|row| / 7``, rounded as in ``Int8``.

    Values lie in C order, two's complement, the first of a pair in the low half; an odd last one is paired with 0.
    Bound (max norm): the largest scale, times 1 + 7 x 2^-23 for float32 rounding.

    Args:
        scale_per: as for ``Int8``.
        error_feedback: as for ``Int8``.

    Raises:
        ConfigError: an unknown ``scale_per``.

    Example:
        >>> parts = Int4().pack(np.full(100, 2, np.float32), np.random.default_rng(0))
        >>> len(parts["values"]), hex(parts["values"][0])
        (50, '0x77')
    """

    __slots__ = ()

    name = "int4"
    levels = 7

    def _stored_spec(self, shape: Shape) -> TensorSpec:
        size = int(np.prod(shape, dtype=np.int64))
        return TensorSpec(((size + 1) // 2,), "uint8")

    def _store(self, codes: np.ndarray) -> np.ndarray:
        return pack_nibbles(codes)

    def _read(self, stored: np.ndarray, shape: Shape) -> np.ndarray:
        codes = unpack_nibbles(stored)
        size = int(np.prod(shape, dtype=np.int64))
        if codes[size:].any():
            raise WireError("codes", "the half byte after the last value must be 0")
        return codes[:size]


def row_scales(matrix: np.ndarray, levels: int, axis: int) -> np.ndarray:
    """Return ``max|x| / levels`` along ``axis``, the float32 at or above it: no code can exceed ``levels``."""
    exact = np.abs(matrix).max(axis=axis, initial=0).astype(np.float64) / levels
    scales: np.ndarray = exact.astype(np.float32)
    np.nextafter(scales, np.float32(np.inf), out=scales, where=scales < exact)
    return scales


def round_at_random(matrix: np.ndarray, scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ``matrix / scales`` as int8, rounded up with the probability of the fraction; 0 where the scale is 0."""
    ratio = np.divide(matrix, scales, out=np.zeros_like(matrix, order="C"), where=scales > 0)
    low: np.ndarray = np.floor(ratio)
    # Not floor(ratio + u): that sum rounds, and would lift a value that needs no rounding at all.
    up = rng.random(ratio.shape, dtype=np.float32) < ratio - low
    low += up
    return low.astype(np.int8)


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Return codes in -8..7 two to a byte, in C order.

    Example:
        >>> [hex(byte) for byte in pack_nibbles(np.int8([1, -1, 7]))]
        ['0xf1', '0x7']
    """
    halves = codes.reshape(-1).view(np.uint8) & 15
    halves = np.pad(halves, (0, len(halves) % 2))
    packed: np.ndarray = halves[0::2] | (halves[1::2] << 4)
    return packed


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Return the codes of ``pack_nibbles`` and, after an odd number of them, what pads the last byte."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
    codes: np.ndarray = (halves ^ 8).view(np.int8) - np.int8(8)
    return codes
