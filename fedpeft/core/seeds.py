"""Random numbers by name: a generator for each purpose, none that lives across rounds."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """Return the 64-bit seed that belongs to ``path`` under ``seed``.

    Args:
        seed: the run's seed.
        path: names and numbers that say what the randomness is for, e.g. ``("train", 3, 17)``.
    """
    text = "/".join([str(int(seed)), *(f"{type(p).__name__}:{p}" for p in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def rng(seed: int, *path: str | int) -> np.random.Generator:
    """Return a fresh numpy generator for ``path`` under ``seed``.

    Equal arguments give equal streams on every machine; different paths give independent ones.

    Example:
        >>> rng(0, "train", 1, 5).bytes(8) == rng(0, "train", 1, 5).bytes(8)
        True
    """
    return np.random.Generator(np.random.PCG64(derive(seed, *path)))
