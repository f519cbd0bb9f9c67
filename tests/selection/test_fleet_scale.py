"""A large fleet: a round is planned in well under a second, in memory for those that are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.fleet_scale import measure


@pytest.fixture(scope="module")
def found() -> Any:
    """Six rounds of 200,000 registered phones, as the benchmark measures a million."""
    return measure(200_000, rounds=6)


def test_a_round_is_planned_in_a_second(found: Any) -> None:
    """About 50 ms on a quiet core; three seconds bear a busy machine."""
    assert float(np.median(found.round_s)) < 3.0


def test_memory_is_for_those_that_are_there(found: Any) -> None:
    """14 bytes a registered client; planning needs 1 byte for each and 9 for each one there: 8 MiB hold no objects."""
    assert found.fleet_mb < 3
    assert found.peak_mb < 8
    assert found.state_mb < 0.1


def test_the_share_that_is_there_is_that_of_the_profiles(found: Any) -> None:
    """At one hour into the wave p is 0.195 + 0.042 sin(2 pi / 24 x hours): between 0.195 and 0.217."""
    assert 0.19 < found.present / 200_000 < 0.22
