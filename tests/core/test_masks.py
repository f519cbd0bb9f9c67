"""Masks: how many places, where, and the same everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.masks import mask_indices, mask_size, scatter


@pytest.mark.parametrize(
    ("shape", "density", "size"),
    [((4, 5), 0.25, 5), ((10, 10), 0.014, 1), ((3, 3), 0.01, 1), ((7, 3), 1.0, 21), ((384, 384), 0.01, 1475)],
)
def test_a_mask_has_its_density(shape: tuple[int, int], density: float, size: int) -> None:
    """density m n rounded, at least one: 0.01 x 147,456 = 1474.56."""
    indices = mask_indices(3, "query", shape, density)
    assert mask_size(shape, density) == len(indices) == size
    assert indices.dtype == np.int64
    assert list(indices) == sorted({*indices.tolist()})
    assert 0 <= indices[0] <= indices[-1] < shape[0] * shape[1]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_density_is_within_one_percent(density: float) -> None:
    assert len(mask_indices(0, "x", (200, 100), density)) / 20_000 == pytest.approx(density, rel=0.01)


def test_one_seed_gives_one_mask_and_others_give_others() -> None:
    """Two masks of 1,000 of 100,000 places share 10 on average, with a deviation of about 3."""
    shape = (1000, 100)
    first = mask_indices(1, "a.query", shape, 0.01)
    assert np.array_equal(first, mask_indices(1, "a.query", shape, 0.01))
    for other in (mask_indices(2, "a.query", shape, 0.01), mask_indices(1, "b.query", shape, 0.01)):
        assert len(np.intersect1d(first, other)) < 25


def test_a_mask_is_what_it_was() -> None:
    """Clients on other machines, and other versions of numpy, must draw this one too."""
    assert mask_indices(0, "base_model.model.query", (6, 8), 0.125).tolist() == [3, 7, 11, 20, 22, 26]
    assert mask_indices(0, "base_model.model.query", (3, 4), 0.75).tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 11]


def test_all_sets_are_alike_likely() -> None:
    """3 of 5 places in 3,000 masks: each of the 10 sets comes 300 times, deviation sqrt(3000 x 0.1 x 0.9) = 16.4.

    3 is the larger part, so that the two places left out are what is drawn.
    """
    drawn = [tuple(mask_indices(seed, "x", (1, 5), 0.6).tolist()) for seed in range(3000)]
    counts = [drawn.count(one) for one in itertools.combinations(range(5), 3)]
    assert sum(counts) == 3000
    assert all(abs(count - 300) < 5 * 16.4 for count in counts)


def test_scatter_puts_values_at_their_places() -> None:
    """Flat C order of (2, 3): place 1 is (0, 1), place 5 is (1, 2)."""
    assert scatter(np.float32([7, 8]), np.array([1, 5]), (2, 3)).tolist() == [[0, 7, 0], [0, 0, 8]]


@pytest.mark.parametrize("density", [0, -0.1, 1.001, float("nan"), True, "0.1", None])
def test_a_density_out_of_range_is_refused(density: object) -> None:
    with pytest.raises(ConfigError, match=r"density must be in \(0, 1\], got .* \(set method.density\)"):
        mask_indices(0, "x", (4, 4), density)  # type: ignore[arg-type]
