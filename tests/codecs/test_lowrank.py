"""LowRank on matrices whose singular values are known."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.codecs.lowrank import LowRank
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec

RNG = np.random.default_rng(0)


def diagonal(*values: float, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    made = np.zeros(shape, np.float32)
    made[range(len(values)), range(len(values))] = values
    return made


def test_singular_values_3_2_1_at_rank_2() -> None:
    """diag(3, 2, 1): rank 2 keeps 3 and 2, errs by 1 in one place, and that is singular value 3, the bound."""
    codec, given = LowRank(rank=2), diagonal(3, 2, 1)
    parts = codec.pack(given, RNG)
    assert {part: value.shape for part, value in parts.items()} == {"left": (2, 40), "right": (2, 50)}
    np.testing.assert_allclose(codec.unpack(parts, given.shape), diagonal(3, 2), atol=1e-6)
    assert 1 <= codec.bound(given) < 1 + 1e-5


def test_each_factor_carries_the_root_of_the_singular_value() -> None:
    """4 e_0 e_1^T: left and right are 2 in their one place, up to a common sign."""
    given = np.zeros((40, 50), np.float32)
    given[0, 1] = 4
    parts = LowRank(rank=1).pack(given, RNG)
    assert np.abs(parts["left"][0, 0]) == pytest.approx(2)
    assert parts["left"][0, 0] == pytest.approx(float(parts["right"][0, 1]))
    assert np.count_nonzero(np.abs(parts["left"]) > 1e-6) == np.count_nonzero(np.abs(parts["right"]) > 1e-6) == 1


def test_the_error_is_the_tail_of_the_singular_values() -> None:
    """Frobenius norm of the error = sqrt(s_4^2 + ... + s_30^2), Eckart and Young."""
    given = np.float32(np.random.default_rng(1).normal(size=(30, 60)))
    s = np.linalg.svd(given.astype(np.float64), compute_uv=False)
    codec = LowRank(rank=3)
    error = codec.unpack(codec.pack(given, RNG), given.shape) - given
    assert np.linalg.norm(error) == pytest.approx(np.sqrt(np.square(s[3:]).sum()), rel=1e-5)
    assert codec.bound(given) == pytest.approx(s[3], rel=1e-4)
    assert np.abs(error).max() <= np.linalg.norm(error, 2) <= codec.bound(given)


def test_what_travels_as_it_is() -> None:
    """Vectors; and 8 x 384 at rank 8: factors of 8 x 392 are more than the matrix. At rank 7, 7 x 392 = 2744 < 3072."""
    for shape in ((384,), (), (8, 384), (3, 0), (2, 2)):
        assert LowRank(rank=8).encoded_spec({"x": TensorSpec(shape, "float32")}) == {"x": TensorSpec(shape, "float32")}
    assert sorted(LowRank(rank=7).parts((8, 384))) == ["left", "right"]
    assert LowRank(rank=1024).parts((30, 40)) == {"": TensorSpec((30, 40), "float32")}


def test_more_axes_are_read_as_the_first_against_the_rest() -> None:
    parts = LowRank(rank=2).parts((16, 8, 3, 3))
    assert {part: one.shape for part, one in parts.items()} == {"left": (2, 16), "right": (2, 72)}
    given = np.float32(np.multiply.outer(np.arange(16), np.arange(72).reshape(8, 3, 3)))
    codec = LowRank(rank=1)
    np.testing.assert_allclose(codec.unpack(codec.pack(given, RNG), given.shape), given, rtol=1e-5, atol=1e-3)


def test_the_product_is_summed_in_order_in_float32() -> None:
    """2^24 + 1 - 2^24, component by component: 2^24 + 1 rounds to 2^24 in float32, so that 0 arrives, not 1. A product
    by BLAS may sum in another order or width, and then machines would differ."""
    left = np.ones((3, 100), np.float32)
    right = np.float32([[2.0**24], [1], [-(2.0**24)]]) * np.ones((1, 100), np.float32)
    decoded = LowRank(rank=3).unpack({"left": left, "right": right}, (100, 100))
    assert decoded.dtype == np.float32
    assert not decoded.any()


@pytest.mark.parametrize("part", ["left", "right"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_refused(part: str, bad: float) -> None:
    codec, given = LowRank(rank=1), diagonal(1)
    encoded = codec.encode({"x": given}, RNG)
    encoded[f"x:{part}"][0, -1] = bad
    with pytest.raises(WireError, match=f"finite: x: {part} factors"):
        codec.decode(encoded, {"x": TensorSpec((40, 50), "float32")})


def test_factors_whose_product_overflows_are_refused() -> None:
    encoded = {"x:left": np.full((1, 40), 1e30, np.float32), "x:right": np.full((1, 50), 1e30, np.float32)}
    with pytest.raises(WireError, match="finite: x: decoded values"):
        LowRank(rank=1).decode(encoded, {"x": TensorSpec((40, 50), "float32")})


@pytest.mark.parametrize("rank", [0, -1, 1025, 2.0, True, None])
def test_other_ranks_are_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1..1024, got "):
        LowRank(rank=rank)
