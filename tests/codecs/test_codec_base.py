"""What all codecs share: when a tensor stays plain, and what is refused before any packing."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.codecs.base import as_matrix, join
from fedpeft.codecs.float16 import Float16
from fedpeft.codecs.identity import Identity
from fedpeft.codecs.quantize import Int8
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec

RNG = np.random.default_rng(0)


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype)


def test_a_tensor_is_packed_from_the_size_on_where_it_saves() -> None:
    """A vector of n as Int8 is n + 4 bytes in two arrays, plain 4 n in one; an array counts 200 more.

    n + 4 + 400 < 4 n + 200 from n = 69 on: 3 x 68 = 204 is not above 204, 3 x 69 = 207 is.
    """
    assert Int8().encoded_spec({"x": spec(68)}) == {"x": spec(68)}
    assert Int8().encoded_spec({"x": spec(69)}) == {"x:scales": spec(1), "x:values": spec(69, dtype="int8")}


def test_plain_tensors_are_exact() -> None:
    given = {"x": np.float32([0.1, -3e-39, 7e4])}
    assert Int8().error_bound(given) == {"x": 0.0}
    encoded = Int8().encode(given, RNG)
    assert Int8().decode(encoded, {"x": spec(3)})["x"].tobytes() == given["x"].tobytes()


def test_names_of_parts() -> None:
    assert (join("x", ""), join("x", "values"), join("x", "values", "scales")) == ("x", "x:values", "x:values:scales")


def test_a_tensor_is_read_as_its_first_axis_against_the_rest() -> None:
    assert [as_matrix(s) for s in [(), (0,), (3,), (5, 7), (8, 4, 3, 3), (3, 0), (0, 3)]] == [
        (1, 1),
        (1, 0),
        (1, 3),
        (5, 7),
        (8, 36),
        (3, 0),
        (0, 0),
    ]


@pytest.mark.parametrize("codec", [Identity(), Float16(), Int8()])
def test_names_with_colons_and_other_types_are_refused_together(codec: Identity | Float16 | Int8) -> None:
    with pytest.raises(ConfigError) as caught:
        codec.encoded_spec({"a:b": spec(3), "c": spec(3, dtype="float64")})
    assert len(caught.value.problems) == 2
    assert "'a:b'" in caught.value.problems[0]
    assert "float64 for c" in caught.value.problems[1]
    with pytest.raises(ConfigError, match="got float64 for c"):
        codec.encode({"c": np.zeros(3)}, RNG)


def test_the_same_name_in_the_other_byte_order_is_refused() -> None:
    encoded = {"x": np.zeros(3, ">f4")}
    with pytest.raises(WireError, match="dtype: x is >f4, expected float32"):
        Identity().decode(encoded, {"x": spec(3)})


def test_a_plain_tensor_with_nan_is_refused_by_name() -> None:
    with pytest.raises(WireError, match="finite: x: decoded values hold NaN") as caught:
        Int8().decode({"x": np.float32([0, np.nan])}, {"x": spec(2)})
    assert caught.value.check == "finite"
