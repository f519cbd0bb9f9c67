"""Seconds from work: laws, and one case by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Work
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.presets import list_profiles, load_profile

WORK = Work(flops=43e9, bytes_down=2_000_000, bytes_up=500_000, num_steps=10)


def more(**changes: Any) -> Work:
    """Return WORK with some fields replaced."""
    return dataclasses.replace(WORK, **changes)


@pytest.mark.parametrize("name", list_profiles())
def test_nothing_to_do_takes_the_two_round_trips(name: str) -> None:
    profile = load_profile(name)
    cost = predict(profile, Work(flops=0, bytes_down=0, bytes_up=0))
    assert (cost.down_s, cost.compute_s, cost.up_s) == (profile.network.rtt_ms / 1e3, 0, profile.network.rtt_ms / 1e3)


@pytest.mark.parametrize("name", list_profiles())
def test_each_kind_of_work_moves_its_own_seconds(name: str) -> None:
    profile = load_profile(name)
    base = predict(profile, WORK)
    down, up = predict(profile, more(bytes_down=4_000_000)), predict(profile, more(bytes_up=1_000_000))
    compute, steps = predict(profile, more(flops=86e9)), predict(profile, more(num_steps=20))
    assert down.down_s > base.down_s
    assert (down.compute_s, down.up_s) == (base.compute_s, base.up_s)
    assert up.up_s > base.up_s
    assert (up.compute_s, up.down_s) == (base.compute_s, base.down_s)
    assert min(compute.compute_s, steps.compute_s) > base.compute_s
    assert (compute.down_s, steps.up_s) == (base.down_s, base.up_s)


def test_a_pi_by_hand() -> None:
    """rpi4_4gb: 24 GFLOP/s at .6, 20 ms a step, 60 down and 19 up Mbit/s at .956, 14 ms.

    down 0.014 + 16e6 / (60e6 * .956) = 0.014 + 0.278940 = 0.292940
    compute 43e9 / 14.4e9 + 10 * 0.02 = 2.986111 + 0.2 = 3.186111
    up 0.014 + 4e6 / (19e6 * .956) = 0.014 + 0.220216 = 0.234216
    """
    cost = predict(load_profile("rpi4_4gb"), WORK)
    assert cost.down_s == pytest.approx(0.292940, abs=1e-6)
    assert cost.compute_s == pytest.approx(3.186111, abs=1e-6)
    assert cost.up_s == pytest.approx(0.234216, abs=1e-6)
    assert cost.total_s == pytest.approx(3.713267, abs=1e-6)


def test_the_dtype_chooses_the_rate() -> None:
    """Orin Nano at .35: 1e12 / (1310e9 * .35) = 2.181025 s in float32, / (10910e9 * .35) = .261883 s in bfloat16."""
    profile, work = load_profile("jetson_orin_nano_8gb"), Work(flops=1e12, bytes_down=0, bytes_up=0)
    assert predict(profile, work).compute_s == pytest.approx(2.181025, abs=1e-6)
    brief = predict(profile, dataclasses.replace(work, dtype="bfloat16"))
    assert brief.compute_s == pytest.approx(0.261883, abs=1e-6)


def test_a_device_without_bfloat16_takes_its_float32_time() -> None:
    profile = load_profile("rpi4_4gb")
    assert predict(profile, more(dtype="bfloat16")) == predict(profile, WORK)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of float32, float16, bfloat16, got 'int4'"):
        predict(load_profile("rpi4_4gb"), more(dtype="int4"))
