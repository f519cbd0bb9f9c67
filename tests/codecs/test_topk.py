"""TopK on numbers derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.codecs.topk import TopK, largest, read_places
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec

RNG = np.random.default_rng(0)
SPEC = {"x": TensorSpec((200,), "float32")}


def vector(**places: float) -> np.ndarray:
    """Return 200 zeros but for ``i<place>=value``."""
    made = np.zeros(200, np.float32)
    for place, value in places.items():
        made[int(place[1:])] = value
    return made


def test_the_largest_travel_with_their_sign_in_order() -> None:
    """k = round(0.02 x 200) = 4 of sizes 9, 5, 4, 3, 2: the 2 at 50 stays, so that the error is exactly 2."""
    given = vector(i7=-5, i199=3, i0=4, i50=2, i100=9)
    codec = TopK(fraction=0.02)
    parts = codec.pack(given, RNG)
    assert parts["indices"].tolist() == [0, 7, 100, 199]
    assert parts["indices"].dtype == np.uint32
    assert parts["values"].tolist() == [4, -5, 9, 3]
    assert codec.bound(given) == 2
    assert np.abs(codec.unpack(parts, (200,)) - given).max() == 2


def test_the_bitmap_by_hand() -> None:
    """k = 20 of 200: 25 bytes of bits against 80 of indices. Places 0, 9 and 199 are bit 0 of byte 0, bit 1 of byte 1
    and bit 7 of byte 24; the other 17 are the first zeros: 1..8 and 10..18, so bytes 0xff, 0xff, 0x07."""
    parts = TopK(fraction=0.1).pack(vector(i0=3, i9=-1, i199=2), RNG)
    assert parts["indices"].tolist() == [0xFF, 0xFF, 0x07, *[0] * 21, 0x80]
    assert parts["values"].tolist() == [3, *[0] * 8, -1, *[0] * 9, 2]


def test_the_smaller_way_to_write_places_follows_from_size_and_fraction() -> None:
    """3200 values: a bitmap of 400 bytes, or 4 k: equal at k = 100, where the bitmap is taken; a tensor of more than
    2^32 values has places that uint32 cannot name."""
    for fraction, dtype in ((99 / 3200, "uint32"), (100 / 3200, "uint8")):
        assert TopK(fraction=fraction).parts((3200,))["indices"].dtype == dtype
    assert TopK(fraction=1e-6).parts((2**16, 2**16))["indices"].dtype == "uint32"
    assert TopK(fraction=1e-6).parts((2**16, 2**16 + 1))["indices"].dtype == "uint8"


@pytest.mark.parametrize(("fraction", "kept"), [(0.1, 100), (1e-9, 1), (0.0316, 32), (0.5, 500)])
def test_how_many_travel(fraction: float, kept: int) -> None:
    assert TopK(fraction=fraction).parts((10, 100))["values"].shape == (kept,)


def test_all_of_them_travel_plain() -> None:
    assert TopK(fraction=1).encoded_spec(SPEC) == SPEC


def test_among_equals_the_first() -> None:
    """Sizes 2 1 2 1 1 and k = 4: both 2s and the first two 1s."""
    assert largest(np.float32([2, 1, 2, 1, 1]), 4).tolist() == [0, 1, 2, 3]
    assert largest(np.float32([1, 1, 1, 5]), 2).tolist() == [0, 3]
    assert largest(np.float32([]), 0).tolist() == []


@pytest.mark.parametrize("indices", [[5, 5], [9, 3], [0, 10], [2**32 - 1, 0], [1, 2**32 - 1]])
def test_indices_out_of_range_or_order_are_refused(indices: list[int]) -> None:
    with pytest.raises(WireError) as caught:
        read_places(np.uint32(indices), size=10, kept=2)
    assert caught.value.check == "indices"


@pytest.mark.parametrize("bitmap", [[0b111, 0], [0b1, 0], [0, 0], [0b11, 0b100], [0b1, 0b10000000]])
def test_bitmaps_with_other_bits_are_refused(bitmap: list[int]) -> None:
    """Two of ten values: any other number of bits, and bits 10..15, are wrong."""
    with pytest.raises(WireError) as caught:
        read_places(np.uint8(bitmap), size=10, kept=2)
    assert caught.value.check == "indices"


def test_good_places_are_read() -> None:
    assert read_places(np.uint32([0, 9]), size=10, kept=2).tolist() == [0, 9]
    assert read_places(np.uint8([0b1, 0b10]), size=10, kept=2).tolist() == [0, 9]


def test_values_that_are_not_finite_are_refused() -> None:
    codec = TopK(fraction=0.02)
    encoded = codec.encode({"x": vector(i1=1)}, RNG)
    encoded["x:values"][2] = np.inf
    with pytest.raises(WireError, match="finite: x: "):
        codec.decode(encoded, SPEC)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), True, "0.1", None])
def test_other_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"fraction must be in \(0, 1\], got "):
        TopK(fraction=fraction)
