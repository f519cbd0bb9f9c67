"""Cost from work: each kind of work and each term of the model by hand. Laws: test_prediction_laws."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Luck, Work
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.presets import list_profiles, load_profile
from fedpeft.device_profiles.schema import DeviceProfile

WORK = Work(flops=43e9, bytes_down=2_000_000, bytes_up=500_000, num_steps=10)


def more(**changes: Any) -> Work:
    """Return WORK with some fields replaced."""
    return dataclasses.replace(WORK, **changes)


def pi_with(**changes: Any) -> DeviceProfile:
    """Return rpi4_4gb with numbers replaced at paths spelled with __ for the dots."""
    data = load_profile("rpi4_4gb").to_mapping()
    for path, value in changes.items():
        group, _, key = path.partition("__")
        data[group][key] = value
    return DeviceProfile.from_mapping(data)


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
    """rpi4_4gb: 24 GFLOP/s at .85, 20 ms a step, 60 down and 19 up Mbit/s at .956, 14 ms.

    down 0.014 + 16e6 / (60e6 * .956) = 0.014 + 0.278940 = 0.292940
    compute 43e9 / 20.4e9 + 10 * 0.02 = 2.107843 + 0.2 = 2.307843
    up 0.014 + 4e6 / (19e6 * .956) = 0.014 + 0.220216 = 0.234216
    """
    cost = predict(load_profile("rpi4_4gb"), WORK)
    assert cost.down_s == pytest.approx(0.292940, abs=1e-6)
    assert cost.compute_s == pytest.approx(2.307843, abs=1e-6)
    assert cost.up_s == pytest.approx(0.234216, abs=1e-6)
    assert cost.total_s == pytest.approx(2.834999, abs=1e-6)


def test_the_dtype_chooses_the_rate() -> None:
    """Orin Nano at .5: 1e12 / (1310e9 * .5) = 1.526718 s in float32, / (10910e9 * .5) = .183318 s in bfloat16."""
    profile, work = load_profile("jetson_orin_nano_8gb"), Work(flops=1e12, bytes_down=0, bytes_up=0)
    assert predict(profile, work).compute_s == pytest.approx(1.526718, abs=1e-6)
    brief = predict(profile, dataclasses.replace(work, dtype="bfloat16"))
    assert brief.compute_s == pytest.approx(0.183318, abs=1e-6)


def test_a_device_without_bfloat16_takes_its_float32_time() -> None:
    profile = load_profile("rpi4_4gb")
    assert predict(profile, more(dtype="bfloat16")) == predict(profile, WORK)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of float32, float16, bfloat16, got 'int4'"):
        predict(load_profile("rpi4_4gb"), more(dtype="int4"))


def test_a_pis_joules_by_hand() -> None:
    """rpi4_4gb: 2.7 W idle, 7.2 W load, the seconds of test_a_pi_by_hand, no radio known.

    2.7 * 2.834999 + 4.5 * 2.307843 = 7.654497 + 10.385294 = 18.039791
    """
    assert predict(load_profile("rpi4_4gb"), WORK).energy_j == pytest.approx(18.039791, abs=1e-6)


def test_the_radio_takes_its_energy_for_both_legs() -> None:
    """At 100 nJ a bit: 2.5 MB are 20e6 bits of payload, 20e6 / .956 = 20.920502e6 on the link, 2.092050 J."""
    with_radio, without = (predict(pi_with(energy__tx_nj_per_bit=value), WORK) for value in (100, None))
    assert with_radio.energy_j is not None
    assert without.energy_j is not None
    assert with_radio.energy_j - without.energy_j == pytest.approx(2.092050, abs=1e-6)
    swapped = predict(pi_with(energy__tx_nj_per_bit=100, network__down_mbps=19, network__up_mbps=60), WORK)
    assert swapped.energy_j != with_radio.energy_j


def test_what_is_moved_takes_its_time_after_the_products() -> None:
    """rpi4_4gb moves 5.6 GB/s: 43e9 FLOPs take 43 / 20.4 s, 28 GB take 5 s more, and 10 steps .2 s."""
    found = predict(load_profile("rpi4_4gb"), more(bytes_moved=28e9)).compute_s
    assert found == pytest.approx(43 / 20.4 + 5.2, rel=1e-12)


def test_throttling_by_hand() -> None:
    """rpi4_4gb slows to .8 after 600 s: 20.4 GFLOP/s do 12240 GFLOP until then.

    At 12240 GFLOP just 600 s. At 14280 the 700 s at full speed become 600 + 100 / .8 = 725. With two hundred steps of
    20 ms, 704 s become 600 + 104 / .8 = 730.
    """
    profile = load_profile("rpi4_4gb")
    assert predict(profile, more(flops=12240e9, num_steps=0)).compute_s == pytest.approx(600, rel=1e-12)
    assert predict(profile, more(flops=14280e9, num_steps=0)).compute_s == pytest.approx(725, rel=1e-12)
    assert predict(profile, more(flops=14280e9, num_steps=200)).compute_s == pytest.approx(730, rel=1e-12)
    cool = pi_with(compute__throttle=None)
    assert predict(cool, more(flops=14280e9, num_steps=0)).compute_s == pytest.approx(700, rel=1e-12)


def test_throttling_is_what_small_slices_of_time_add_up_to() -> None:
    """Second by second: 1 s of work a second until 600 s, .8 after."""
    done, seconds = 0.0, 0
    while done < 1000:
        done += 1.0 if seconds < 600 else 0.8
        seconds += 1
    cost = predict(load_profile("rpi4_4gb"), more(flops=20.4e9 * 1000, num_steps=0))
    assert cost.compute_s == pytest.approx(seconds, abs=1)


def test_loss_repeats_the_payload_and_not_the_round_trip() -> None:
    """A fifth lost: 1.25 attempts; 2 MB take .278940 s without, .348675 with, and .014 s of round trip."""
    cost = predict(pi_with(network__loss=0.2), WORK)
    assert cost.down_s == pytest.approx(0.014 + 0.348675, abs=1e-6)


def test_peak_memory_has_the_allocators_part() -> None:
    """1 GiB asked for at 1.05 is 1075.2 MiB held; 0 is not known."""
    profile = load_profile("rpi4_4gb")
    assert predict(profile, more(peak_memory_bytes=2**30)).peak_memory_mb == pytest.approx(1075.2, rel=1e-12)
    assert predict(profile, WORK).peak_memory_mb is None


def test_luck_multiplies_the_legs_and_the_joules_follow() -> None:
    """Twice the download, half the computing, three times the upload of test_a_pi_by_hand, throttled or not.

    2.7 * (2 * .292940 + .5 * 2.307843 + 3 * .234216) + 4.5 * .5 * 2.307843 = 6.594614 + 5.192647 = 11.787261
    """
    profile, luck = load_profile("rpi4_4gb"), Luck(down=2, compute=0.5, up=3)
    for work in (WORK, more(flops=14280e9)):
        plain, lucky = predict(profile, work), predict(profile, work, luck)
        assert (lucky.down_s, lucky.compute_s, lucky.up_s) == (2 * plain.down_s, 0.5 * plain.compute_s, 3 * plain.up_s)
    assert predict(profile, WORK, luck).energy_j == pytest.approx(11.787261, abs=1e-5)
    assert predict(profile, WORK, Luck()) == predict(profile, WORK)
