"""Int8 and Int4 on numbers derived by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedpeft.codecs.quantize import Int4, Int8, pack_nibbles, row_scales, unpack_nibbles
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec

SIZE = 400


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def vector(*first: float) -> np.ndarray:
    """Return 400 float32 values, zeros after the first."""
    return np.pad(np.float32(first), (0, SIZE - len(first)))


def test_int8_by_hand() -> None:
    """max|x| = 127, so that the scale is 1: 127, -3 and 0 are whole and stay, -63.5 becomes -64 or -63."""
    seen = set()
    for seed in range(20):
        parts = Int8().pack(vector(127, -3, -63.5), rng(seed))
        assert parts["scales"].tolist() == [1]
        assert parts["values"][[0, 1, 3]].tolist() == [127, -3, 0]
        seen.add(int(parts["values"][2]))
    assert seen == {-64, -63}


def test_rounding_up_is_as_likely_as_the_fraction() -> None:
    """Scale 1, x = 0.25, -0.25 and 5.9: up with probability 0.25, 0.75 and 0.9.

    Over N = 4000 independent values the mean's standard deviation is sqrt(f (1 - f) / N): 0.0068, 0.0068 and 0.0047;
    four of those are allowed. floor and nearest rounding would be off by 0.25 and more, or 0.1 for 5.9.
    """
    for x, f in ((0.25, 0.25), (-0.25, 0.75), (5.9, 0.9)):
        values = np.float32([127] + [x] * 4000)
        parts = Int8().pack(values, rng(3))
        assert set(parts["values"][1:].tolist()) == {int(np.floor(x)), int(np.floor(x)) + 1}
        assert abs(parts["values"][1:].mean() - x) < 4 * np.sqrt(f * (1 - f) / 4000)


def test_values_on_the_grid_never_move() -> None:
    """127 whole multiples of 2^-10 in both signs: each seed gives the same codes, none beyond 127."""
    grid = np.float32(np.arange(-127, 128) * 2.0**-10)
    for seed in range(50):
        parts = Int8().pack(grid, rng(seed))
        assert parts["values"].tolist() == list(range(-127, 128))
        assert (Int8().unpack(parts, grid.shape) == grid).all()


def test_a_scale_for_each_row_or_for_the_short_side() -> None:
    """(200, 2) of columns 127 and 12.7, the first row ten times as large: rows have 200 scales, the short side two."""
    tall = np.tile(np.float32([127, 12.7]), (200, 1))
    tall[0] *= 10
    by_row = Int8().pack(tall, rng())["scales"]
    assert by_row.shape == (200,)
    np.testing.assert_allclose(by_row, [10] + [1] * 199, rtol=1e-6)
    short = Int8(scale_per="short_side")
    np.testing.assert_allclose(short.pack(tall, rng())["scales"], [10, 1], rtol=1e-6)
    np.testing.assert_allclose(short.pack(tall.T, rng())["scales"], [10, 1], rtol=1e-6)
    for given in (tall, tall.T):
        decoded = short.unpack(short.pack(given, rng()), given.shape)
        assert np.abs(decoded - given).max() <= short.bound(given) < 10.001
        assert short.bound(given) >= 10


def test_int4_by_hand() -> None:
    """Scale 1: codes 7, -7 = 1001b, 3, 0: bytes 1001 0111 = 0x97 and 0x03; of 401 values the last has a byte alone."""
    parts = Int4().pack(vector(7, -7, 3), rng())
    assert parts["values"][:3].tolist() == [0x97, 0x03, 0]
    odd = np.append(vector(7), np.float32(-7))
    parts = Int4().pack(odd, rng())
    assert parts["values"].shape == (201,)
    assert int(parts["values"][-1]) == 0x09
    assert (Int4().unpack(parts, (401,)) == odd).all()


def test_nibbles_there_and_back() -> None:
    codes = np.int8(range(-8, 8))
    assert unpack_nibbles(pack_nibbles(codes)).tolist() == codes.tolist()
    assert unpack_nibbles(pack_nibbles(codes[:5])).tolist() == [-8, -7, -6, -5, -4, 0]


def test_scales_are_rounded_up_and_never_to_zero() -> None:
    """0.1 / 127 is no float32: the scale is the next one above. The smallest denormal / 127 would round to 0."""
    exact = np.float64(np.float32(0.1)) / 127
    scale = row_scales(np.float32([[0.1]]), 127, 1)[0]
    assert exact <= scale <= exact * (1 + 2.0**-22)
    assert row_scales(np.float32([[2.0**-149]]), 127, 1).tolist() == [2.0**-149]
    for top in rng(1).random(1000, dtype=np.float32):
        assert float(row_scales(top[np.newaxis, np.newaxis], 127, 1)[0]) * 127 >= float(top)


def test_denormal_changes_arrive_exactly() -> None:
    """Multiples 3 and -5 of the smallest denormal: the scale is that denormal, the codes 3 and -5."""
    given = vector(3 * 2.0**-149, -5 * 2.0**-149)
    parts = Int8().pack(given, rng())
    assert parts["values"][:2].tolist() == [3, -5]
    assert (Int8().unpack(parts, given.shape) == given).all()


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (lambda parts: parts["scales"].fill(-1), "scales: x: scales must be at least 0, got -1"),
        (lambda parts: parts["scales"].fill(np.nan), "finite: x: scales hold"),
        (lambda parts: parts["scales"].fill(np.inf), "finite: x: scales hold"),
        (lambda parts: parts["scales"].fill(3e38), "finite: x: decoded values hold"),
    ],
)
@pytest.mark.parametrize("codec", [Int8(), Int4()])
def test_bad_scales_are_refused(codec: Int8 | Int4, forge: Callable[[dict[str, np.ndarray]], None], told: str) -> None:
    """3e38 times a code of 7 or more is beyond float32's 3.4e38."""
    encoded = codec.encode({"x": vector(7)}, rng())
    forge({key.removeprefix("x:"): value for key, value in encoded.items()})
    with pytest.raises(WireError, match=told):
        codec.decode(encoded, {"x": TensorSpec((SIZE,), "float32")})


def test_codes_that_no_client_makes_are_refused() -> None:
    """-128 has no scale's worth; the half byte 1000b is -8; of 401 values the last byte's high half means nothing."""
    spec = {"x": TensorSpec((401,), "float32")}
    for codec, place, byte in ((Int8(), 400, -128), (Int4(), 3, 0x08), (Int4(), 3, 0x80), (Int4(), 200, 0x10)):
        encoded = codec.encode({"x": np.append(vector(7), np.float32(0))}, rng())
        encoded["x:values"][place] = byte
        with pytest.raises(WireError, match="codes: x: "):
            codec.decode(encoded, spec)


def test_sizes_of_a_lora_b() -> None:
    """(384, 8): 3072 values. Int4 by row 1536 + 4 x 384 = 3072 bytes, by the short side 1536 + 32 = 1568."""
    for scale_per, size in (("row", 3072), ("short_side", 1568)):
        parts = Int4(scale_per=scale_per).parts((384, 8))
        assert sum(one.num_bytes for one in parts.values()) == size


def test_unknown_scale_per_is_refused() -> None:
    with pytest.raises(ConfigError, match="scale_per must be one of row, short_side, got 'column'"):
        Int4(scale_per="column")
