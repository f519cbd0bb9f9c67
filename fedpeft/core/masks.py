"""Random masks over a matrix, the same on every machine that knows the seed (SLoRA's first stage)."""

from __future__ import annotations

import math

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.seeds import rng

VALUES_SUFFIX = ".sparse_values"
"""Name, after the module's, of the values at the masked places of its weight."""


def check_density(density: object) -> None:
    """Refuse a density that is no number in (0, 1].

    Raises:
        ConfigError: names ``method.density``.
    """
    is_number = isinstance(density, (int, float)) and not isinstance(density, bool)
    if not is_number or not 0 < density <= 1:  # type: ignore[operator]
        raise ConfigError(f"density must be in (0, 1], got {density!r} (set method.density)")


def mask_size(shape: tuple[int, int], density: float) -> int:
    """Return how many entries of a matrix a mask has: ``density * m * n`` rounded, at least 1.

    Raises:
        ConfigError: the density is outside (0, 1].
    """
    check_density(density)
    return max(1, round(density * math.prod(shape)))


def mask_indices(seed: int, module: str, shape: tuple[int, int], density: float) -> np.ndarray:
    """Return the masked places of one module's weight, drawn without replacement, every set of them alike likely.

    Draws are taken from the bit generator itself, whose stream numpy never changes: its ``choice`` may draw otherwise
    in another version, and clients whose masks differ would average apples with pears.

    Args:
        seed: what the masks of a run have in common.
        module: the weight's module, by the name under which its tensors travel.
        shape: (out_features, in_features), however the module stores its weight.
        density: share of the entries, in (0, 1].

    Returns:
        ``mask_size`` flat C-order indices into ``shape``, int64, ascending.

    Raises:
        ConfigError: the density is outside (0, 1].

    Example:
        >>> mask_indices(0, "query", (4, 5), 0.25).shape, mask_indices(0, "query", (2, 2), 1.0).tolist()
        ((5,), [0, 1, 2, 3])
    """
    size, wanted = math.prod(shape), mask_size(shape, density)
    # Of a mask that holds most entries, those that it lacks are drawn: few draws repeat.
    few = min(wanted, size - wanted)
    source = rng(seed, "mask", module).bit_generator
    drawn = np.empty(0, np.int64)
    while len(drawn) < few:
        # A remainder of 64 bits is uneven by less than size / 2^64.
        more = (source.random_raw(2 * (few - len(drawn)) + 8) % np.uint64(size)).astype(np.int64)
        both = np.concatenate([drawn, more])
        drawn = both[np.sort(np.unique(both, return_index=True)[1])]
    chosen = np.sort(drawn[:few])
    return chosen if few == wanted else np.setdiff1d(np.arange(size, dtype=np.int64), chosen, assume_unique=True)


def scatter(values: np.ndarray, indices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the dense (m, n) float64 matrix that holds values at their places and zero elsewhere.

    Example:
        >>> scatter(np.float32([7]), np.array([2]), (2, 2)).tolist()
        [[0.0, 0.0], [7.0, 0.0]]
    """
    dense = np.zeros(math.prod(shape))
    dense[indices] = values
    return dense.reshape(shape)
