"""Random numbers that nobody can repeat: noise and coins from the operating system's cryptographic generator.

A key of 256 bits from ``os.urandom`` drives a ChaCha20 keystream, and the numbers are made from its bits. There is no
seed and no state to save: a run that is repeated or resumed draws other noise. A forked child draws a key of its own,
because two clients with the same noise would have none.

What this does not prove: the numbers are float64, not real numbers. Which floats a noised value can take depends on
the value without noise, and someone who sees all bits of an output can use that, against Laplace noise (Mironov 2012,
"On significance of the least significant bits for differential privacy") as against Gaussian noise and DP-SGD (Jin et
al. 2022, arXiv:2112.05307). Two things stand in the way. Each number is the sum of four, so that the floats that can
come out are too many to be searched (Holohan and Braghin 2021, arXiv:2107.10138, section 5.1). And noise that is added
in float64 to what leaves as float32 loses its last 29 bits. Neither is a proof, which discrete noise would need; the
accounting takes the noise to be ideal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

T = TypeVar("T")

_UNIT = 2.0**-53
_CHUNK = 2**13
"""Numbers that are made at a time: what they are made of then stays in the processor's cache."""


class _Keystream:
    """Bits of ChaCha20 under a key that only this process has."""

    def __init__(self) -> None:
        self._renew()

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` uniform uint64, shape (count,)."""
        if self._process != os.getpid() or self._left < 8 * count:
            self._renew()
        self._left -= 8 * count
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")

    def _renew(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        self._process = os.getpid()
        # The counter has 32 bits and counts blocks of 64 bytes; a new key comes long before it would start again.
        self._left = 2**36
        self._cipher: Any = Cipher(ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()


class _Secure:
    """What both kinds of generator share: a keystream that cannot be copied."""

    def __init__(self) -> None:
        self._keystream = _Keystream()

    def __reduce__(self) -> NoReturn:
        # A copy would give out the same numbers a second time.
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: make a new one")


class SecureNormal(_Secure):
    """Gaussian noise that is different in every run.

    Each number is half the sum of four from Box and Muller's transform of uniforms with 53 bits. That is normal but for
    float64's rounding and for the far tails: none of the four lies beyond sqrt(106 ln 2) = 8.57 standard deviations,
    where the normal distribution has 1e-17 of its mass.

    Example:
        >>> noise = SecureNormal().draw((2, 3), std=0.5)
        >>> noise.shape, noise.dtype.name
        ((2, 3), 'float64')
    """

    def draw(self, shape: int | Sequence[int], *, std: float = 1.0) -> np.ndarray:
        """Return independent normal numbers, float64, mean 0 and standard deviation ``std``."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        numbers = np.zeros(math.prod(shape))
        for start in range(0, numbers.size, _CHUNK):
            some = numbers[start : start + _CHUNK]
            for _ in range(4):
                some += self._pairs(some.size)
            some *= std / 2
        return numbers.reshape(shape)

    def _pairs(self, count: int) -> np.ndarray:
        """Return standard normal numbers, shape (count,), two from each radius."""
        half = (count + 1) // 2
        bits = self._keystream.words(2 * half) >> 11
        # (0, 1], so that the logarithm is finite.
        radius = np.sqrt(-2.0 * np.log((bits[:half] + np.uint64(1)) * _UNIT))
        angle = bits[half:] * (2.0 * math.pi * _UNIT)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


class SecureCoin(_Secure):
    """Coins, subsets and shuffles that nobody can foresee.

    Example:
        >>> coin = SecureCoin()
        >>> coin.subset(range(5), 1.0), sorted(coin.shuffle(range(5)))
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """

    def flip(self, rate: float, count: int) -> np.ndarray:
        """Return ``count`` independent coins, shape (count,), each true with chance ``rate`` rounded down to 53 bits.

        Args:
            rate: in [0, 1].
            count: how many.

        Raises:
            ValueError: the rate is out of range.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1], got {rate!r}")
        return (self._keystream.words(count) >> 11) < np.uint64(math.floor(rate * 2**53))

    def subset(self, items: Sequence[T], rate: float) -> list[T]:
        """Return a Poisson sample: each item with chance ``rate``, independently of all others; it may be empty."""
        return [items[i] for i in np.flatnonzero(self.flip(rate, len(items))).tolist()]

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order; all orders are equally likely but for ties of 64-bit numbers."""
        return [items[i] for i in np.argsort(self._keystream.words(len(items)), kind="stable").tolist()]
