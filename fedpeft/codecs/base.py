"""The contract of a codec: what a client's change looks like on the way up.

A codec works tensor by tensor. Each tensor becomes a few parts, named ``<key>`` or ``<key>:<part>``, whose shapes and
dtypes follow from the tensor's shape alone: the guard knows every size before a byte arrives. A tensor whose parts
would not be smaller, headers counted, travels plain, as float32 under its own name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors, TensorSpec

PLAIN = ""
"""Name of the one part of a tensor that travels under its own name."""
ARRAY_BYTES = 200
"""What each array costs beside its values: 128 bytes of npy header and a name of about 70 characters."""
LARGEST = 2.0**100
"""Changes beyond this are refused: far from any that training makes, and nothing below overflows float32 inside."""

Shape = tuple[int, ...]


class Codec(ABC):
    """Packs changes into fewer bytes. Pure: the same change and generator state give the same bytes.

    Subclasses say how one tensor is packed (the four methods with an underscore); the rest is here.

    Attributes:
        name: as the report and messages call it.
        lossless: nothing is lost; the trained tensors themselves travel, not their change.
        sparse: drops coordinates (they arrive as zero), which coordinate-wise robust rules cannot bear.
        unbiased: the mean of what arrives, over the generator, is the change.
        error_feedback: what a round lost is kept by the client and added to its next change.
    """

    name: str
    lossless: bool = False
    sparse: bool = False
    unbiased: bool = False
    error_feedback: bool = False

    def encode(self, change: Mapping[str, np.ndarray], rng: np.random.Generator) -> Tensors:
        """Return what travels for a change, C-contiguous and in sorted order.

        Args:
            change: float32 changes by tensor name.
            rng: the only source of randomness.

        Raises:
            WireError: check ``finite``: a change is NaN, infinite or too large for the codec.
            ConfigError: as ``encoded_spec``.
        """
        _check_input(specs(change))
        encoded: Tensors = {}
        for key in sorted(change):
            if not (np.abs(change[key]) <= LARGEST).all():
                raise WireError(
                    "finite",
                    f"the change of {key} holds NaN, infinity or values beyond {LARGEST:.2g} (lower client.lr)",
                )
            with _naming(key):
                parts = self.pack(change[key], rng)
            encoded |= {join(key, part): np.asarray(array, order="C") for part, array in parts.items()}
        return dict(sorted(encoded.items()))

    def decode(self, encoded: Mapping[str, np.ndarray], spec: Mapping[str, TensorSpec]) -> Tensors:
        """Return the float32 change that foreign parts stand for, every byte of them checked.

        Args:
            encoded: parts as they came, left untouched.
            spec: shapes of the change, from this side's own knowledge; only these are allocated.

        Raises:
            WireError: checks ``keys``, ``dtype``, ``shape``, ``finite``, and ``indices``, ``scales`` or ``codes`` of
                the codecs that have them.
        """
        self._check_form(encoded, spec)
        decoded: Tensors = {}
        for key in sorted(spec):
            shape = spec[key].shape
            parts = {part: encoded[join(key, part)] for part in self.parts(shape)}
            with _naming(key), np.errstate(over="ignore", invalid="ignore"):
                decoded[key] = self.unpack(parts, shape)
                check_finite("decoded values", decoded[key])
        return decoded

    def encoded_spec(self, spec: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Return exact shapes and dtypes of what travels for tensors of these shapes, in sorted order.

        Raises:
            ConfigError: a tensor is not float32, or its name holds ``:``, which parts are named with.
        """
        _check_input(spec)
        found = {join(key, part): one for key in spec for part, one in self.parts(spec[key].shape).items()}
        return dict(sorted(found.items()))

    def error_bound(self, change: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return by tensor the largest ``|decoded - change|`` of any one value (max norm), for every generator."""
        return {key: self.bound(change[key]) for key in sorted(change)}

    def parts(self, shape: Shape) -> dict[str, TensorSpec]:
        """Return the parts that one tensor of this shape travels as."""
        packed, plain = self._layout(shape), {PLAIN: TensorSpec(shape, "float32")}
        return packed if _cost(packed) < _cost(plain) else plain

    def pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the parts of one float32 change."""
        return {PLAIN: change} if self._stays_plain(change.shape) else self._pack(change, rng)

    def unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        """Return the float32 change of one tensor, whose parts have the form that ``parts`` says.

        Raises:
            WireError: what the parts say is impossible.
        """
        return parts[PLAIN] if self._stays_plain(shape) else self._unpack(parts, shape)

    def bound(self, change: np.ndarray) -> float:
        """Return the largest error of any value of one tensor."""
        return 0.0 if self._stays_plain(change.shape) else self._bound(change)

    @abstractmethod
    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        """Return the parts, whether they are smaller or not."""

    @abstractmethod
    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray: ...

    @abstractmethod
    def _bound(self, change: np.ndarray) -> float: ...

    def _stays_plain(self, shape: Shape) -> bool:
        return self.parts(shape) == {PLAIN: TensorSpec(shape, "float32")}

    def _check_form(self, encoded: Mapping[str, np.ndarray], spec: Mapping[str, TensorSpec]) -> None:
        expected = self.encoded_spec(spec)
        if set(encoded) != set(expected):
            missing, extra = sorted(set(expected) - set(encoded)), sorted(set(encoded) - set(expected))
            raise WireError("keys", f"missing {missing[:3]}, unexpected {extra[:3]}")
        for key, one in expected.items():
            if encoded[key].dtype != np.dtype(one.dtype):
                raise WireError("dtype", f"{key} is {encoded[key].dtype}, expected {one.dtype}")
            if encoded[key].shape != one.shape:
                raise WireError("shape", f"{key} has shape {encoded[key].shape}, expected {one.shape}")


class NumberFormat(Codec):
    """A codec that stores every value in fewer bits; the last stage of a chain."""


class Reducer(Codec):
    """A codec that sends fewer float32 values, and draws nothing; the first stage of a chain."""

    def spread(self, parts: Mapping[str, np.ndarray], errors: Mapping[str, float]) -> float:
        """Return how far the change moves at most when its parts move.

        Args:
            parts: the parts of one change.
            errors: by float32 part, the largest error of any of its values.
        """
        return errors[PLAIN] if PLAIN in errors else self._spread(parts, errors)

    @abstractmethod
    def _spread(self, parts: Mapping[str, np.ndarray], errors: Mapping[str, float]) -> float: ...


def join(*names: str) -> str:
    """Return the name of a part, e.g. ``<key>:values``; empty names are left out."""
    return ":".join(name for name in names if name)


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Return rows and columns that a tensor is read as: its first axis against the rest, one row for a vector.

    Example:
        >>> as_matrix((8, 4, 3, 3)), as_matrix((5,)), as_matrix(())
        ((8, 36), (1, 5), (1, 1))
    """
    size = int(np.prod(shape, dtype=np.int64))
    return (1, size) if len(shape) < 2 else (shape[0], size // max(shape[0], 1))


def check_finite(what: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity.

    Raises:
        WireError: check ``finite``.
    """
    if not np.isfinite(values).all():
        raise WireError("finite", f"{what} hold NaN or infinity")


class _naming:
    """Puts the tensor's name before the reason of a WireError."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, WireError):
            raise WireError(error.check, f"{self._key}: {error.reason}") from None


def _cost(parts: Mapping[str, TensorSpec]) -> int:
    return sum(one.num_bytes + ARRAY_BYTES for one in parts.values())


def _check_input(spec: Mapping[str, TensorSpec]) -> None:
    problems = [f"a tensor name holds ':', which names a codec's parts: {key!r}" for key in spec if ":" in key]
    problems += [
        f"codecs pack float32 changes, got {one.dtype} for {key}" for key, one in spec.items() if one.dtype != "float32"
    ]
    if problems:
        raise ConfigError(problems)
