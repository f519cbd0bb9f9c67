from __future__ import annotations

import pytest

from fedpeft.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1.5e6, "1.50 MB"),
        (37_812_345, "37.8 MB"),
        (2.5e12, "2.50 TB"),
    ],
)
def test_bytes_are_decimal_with_three_digits(value: float | None, text: str) -> None:
    assert numbers.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.0563, "56.3 ms"),
        (41.04, "41.0 s"),
        (60, "1 min 00 s"),
        (4000, "1 h 07 min"),
        (200_000, "2 d 08 h"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    """4000 s = 66.7 min, 67 min rounded; 200,000 s = 55.6 h, 56 h rounded = 2 d 08 h."""
    assert numbers.duration(value) == text


def test_shares_and_changes() -> None:
    assert numbers.percent(0.7934) == "79.3 %"
    assert numbers.points(0.487, 0.793) == "+30.6 points"
    assert numbers.points(None, 0.5) == ""


def test_units_suit_the_largest_value() -> None:
    """Hours from two of them on: an axis of 1.5 h reads 90 min."""
    assert numbers.seconds_unit(7199) == (60.0, "min")
    assert numbers.seconds_unit(7200) == (3600.0, "h")
    assert numbers.bytes_unit(0) == (1.0, "B")


def test_names_from_outside_are_one_short_printable_line() -> None:
    assert numbers.name("a\x1b[31m\nb\tc") == "a [31m b c"
    assert len(numbers.name("x" * 500)) == 48
