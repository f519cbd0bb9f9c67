"""Float16 on numbers derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.codecs.float16 import Float16
from fedpeft.core.errors import WireError
from fedpeft.core.types import TensorSpec

RNG = np.random.default_rng(0)


def there_and_back(*values: float) -> list[float]:
    given = np.float32(values)
    encoded = Float16().encode({"x": given}, RNG)
    assert encoded["x"].dtype == np.float16
    decoded: list[float] = Float16().decode(encoded, {"x": TensorSpec(given.shape, "float32")})["x"].tolist()
    return decoded


def test_eleven_bits_to_nearest_even() -> None:
    """1 + 2^-11 lies between 1 and 1 + 2^-10 and goes to the even 1; 1 + 3 x 2^-11 to 1 + 2^-9; 0.5 and -7 stay."""
    assert there_and_back(1 + 2**-11, 1 + 3 * 2**-11, 0.5, -7) == [1, 1 + 2**-9, 0.5, -7]


def test_steps_of_2_to_minus_24_near_zero() -> None:
    """2^-24 is the smallest, half of it goes to the even 0, 1.5 of it to 2 x 2^-24: off by 2^-25, the bound there."""
    assert there_and_back(2.0**-24, 2.0**-25, 1.5 * 2.0**-24) == [2.0**-24, 0, 2.0**-23]
    assert Float16().error_bound({"x": np.float32([2.0**-25])}) == {"x": 2.0**-25}


def test_the_bound_is_reached() -> None:
    """1 + 2^-11 errs by 2^-11; the bound is 2^-11 times the largest value, here 1 + 2^-11 itself."""
    given = np.float32([1 + 2**-11])
    assert 2**-11 <= Float16().error_bound({"x": given})["x"] == 2**-11 * (1 + 2**-11)


def test_beyond_65504_is_refused_and_not_cut() -> None:
    """65519 still rounds to 65504, 65520 would round to 65536, which float16 lacks."""
    assert there_and_back(65519) == [65504]
    with pytest.raises(WireError, match="finite: x: a change does not fit float16") as caught:
        there_and_back(-65520)
    assert caught.value.check == "finite"


def test_infinities_from_elsewhere_are_refused() -> None:
    with pytest.raises(WireError, match="finite: x: "):
        Float16().decode({"x": np.float16([np.inf])}, {"x": TensorSpec((1,), "float32")})
