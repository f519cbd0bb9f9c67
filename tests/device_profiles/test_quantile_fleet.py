"""Fleets by quantiles: published numbers come back, names are enough, and bad populations are refused."""

from __future__ import annotations

import copy
import json
import pickle
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import yaml

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.core.types import Work
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.presets import load_profile
from fedpeft.device_profiles.quantile_fleet import QuantileFleet
from fedpeft.device_profiles.schema import DeviceProfile

SHIPPED = ["fedscale_like", "flash_like"]


def config_of(name: str) -> dict[str, Any]:
    """Return a shipped fleet's settings without the class."""
    data: dict[str, Any] = yaml.safe_load((conf_dir() / "fleet" / f"{name}.yaml").read_text(encoding="ascii"))
    del data["_target_"]
    return data


def shipped(name: str) -> QuantileFleet:
    """Return a shipped fleet."""
    return QuantileFleet(**config_of(name))


def rates(profile: DeviceProfile) -> tuple[float, float, float]:
    """Return what a fleet draws: GFLOP/s, Mbit/s down and up."""
    assert profile.compute.achievable_gflops.fp32 is not None
    return profile.compute.achievable_gflops.fp32, profile.network.down_mbps, profile.network.up_mbps


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_lines_fleet_is_the_files(name: str) -> None:
    config = cfg.compose([f"fleet={name}", "model.path=x", "partition.seed=0"])
    fleet = cfg.build(config["fleet"], allow=("fedpeft.device_profiles.",))
    assert fleet == shipped(name)
    again = cfg.build(json.loads(json.dumps(config["fleet"])))
    assert all(again.profile(device) == fleet.profile(device) for device in fleet.assign(50, seed=1))


def test_fedscales_median_and_tails() -> None:
    """40 ms are phone_mid's 60 GFLOP/s, so 24 ms (the fast quarter) are 100 and 148 ms (the slow one) 16.216.

    Classes end at quarters and halves: the one below and the one above lie on both sides of the published value.
    """
    fleet = shipped("fedscale_like")
    for quantile, gflops, mbps in ((25, 60 * 40 / 148, 2.89), (50, 60.0, 6.1), (75, 100.0, 14.0)):
        below, above = (rates(fleet.profile(f"fedscale_like:{k}-{k}")) for k in (quantile - 1, quantile))
        assert below[0] <= gflops <= above[0]
        assert below[1] <= mbps <= above[1]
    fast, slow = (rates(fleet.profile(f"fedscale_like:{k}-{k}")) for k in ("99", "00"))
    assert fast[0] == pytest.approx(160, rel=1e-9)
    assert slow[0] == pytest.approx(60 * 40 / 197.49, rel=1e-4)
    assert slow[1] == pytest.approx(1.0447, rel=1e-4)
    assert fast[1] == pytest.approx((107 * 203) ** 0.5, rel=1e-9)
    assert fast[1:] == (fast[1], fast[1])


def test_flashs_phones() -> None:
    """Score 1549 is phone_low's 25 GFLOP/s; the slowest tenth holds 274: 4.4222. Memory in steps."""
    fleet = shipped("flash_like")
    slow = fleet.profile("flash_like:00-00")
    assert rates(slow)[0] == pytest.approx(25 * 274 / 1549, rel=1e-12)
    memory = [fleet.profile(f"flash_like:{k:02d}-50").memory.total_mb for k in range(100)]
    assert memory == sorted(memory)
    assert [memory[k] for k in (2, 3, 15, 27, 28, 55, 79, 80, 96)] == [
        512,
        768,
        1024,
        3072,
        4096,
        4096,
        6144,
        8192,
        8192,
    ]
    assert rates(fleet.profile("flash_like:99-99"))[1:] > (100, 50)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_device_takes_the_bases_time_divided_by_its_speed(name: str) -> None:
    """Bound by arithmetic, by memory or by overhead; short of throttling."""
    fleet = shipped(name)
    base = load_profile(fleet.base)
    for device in fleet.weights:
        profile = fleet.profile(device)
        factor = rates(profile)[0] / rates(base)[0]
        for work in (
            Work(flops=1e11, bytes_down=0, bytes_up=0),
            Work(flops=1e9, bytes_moved=1e11, bytes_down=0, bytes_up=0),
            Work(flops=1e9, num_steps=50, bytes_down=0, bytes_up=0),
        ):
            expected = predict(base, work).compute_s / factor
            assert predict(profile, work).compute_s == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_faster_classes_are_faster_and_every_profile_is_sound(name: str) -> None:
    """``from_mapping`` checks every number, source and contradiction."""
    fleet = shipped(name)
    previous = (0.0, 0.0, 0.0)
    for k in range(100):
        profile = fleet.profile(f"{name}:{k:02d}-{k:02d}")
        assert DeviceProfile.from_mapping(profile.to_mapping()) == profile
        assert all(now >= before for now, before in zip(rates(profile), previous, strict=True))
        previous = rates(profile)


def test_each_axis_moves_its_own_numbers() -> None:
    fleet = shipped("flash_like")
    profile, faster, nearer = (fleet.profile(f"flash_like:{pair}") for pair in ("20-20", "80-20", "20-80"))
    assert faster.network == profile.network
    assert rates(nearer)[0] == rates(profile)[0]
    assert (nearer.compute, nearer.memory) == (profile.compute, profile.memory)
    assert all(near > far for near, far in zip(rates(nearer)[1:], rates(profile)[1:], strict=True))
    assert faster.memory.total_mb > profile.memory.total_mb


def test_a_drawn_number_says_where_it_comes_from() -> None:
    profile = shipped("fedscale_like").profile("fedscale_like:37-82")
    speed, link = profile.source_of("compute.achievable_gflops.fp32"), profile.source_of("network.down_mbps")
    assert speed.kind == "assumed"
    assert speed.source.endswith("at quantile 0.375 of speed, base phone_mid")
    assert link.kind == "derived"
    assert link.source.endswith("at quantile 0.825 of bandwidth")
    assert profile.source_of("energy.load_w") == load_profile("phone_mid").source_of("energy.load_w")


def test_a_bases_single_rate_does_not_keep_its_source() -> None:
    """jetson_agx_orin_64gb names a source for float16 alone."""
    fleet = QuantileFleet(**config_of("fedscale_like") | {"base": "jetson_agx_orin_64gb"})
    profile = fleet.profile("fedscale_like:37-82")
    assert profile.source_of("compute.achievable_gflops.fp16").source.endswith("base jetson_agx_orin_64gb")
    assert profile.device_class == "jetson"


@pytest.mark.parametrize("num_clients", [1, 2, 7, 99, 100, 101, 1000, 12_345])
def test_each_class_has_its_hundredth_on_both_axes(num_clients: int) -> None:
    devices = shipped("fedscale_like").assign_codes(num_clients, seed=4)
    assert len(devices) == num_clients
    codes = devices.codes.astype(int)
    for classes in (codes // 100, codes % 100):
        counts = np.bincount(classes, minlength=100)
        assert len(counts) == 100
        assert (abs(counts - num_clients / 100) < 1).all()


def test_a_single_client_is_the_middle_one() -> None:
    assert shipped("flash_like").assign(1, seed=9) == ["flash_like:50-50"]


def test_speed_and_bandwidth_do_not_go_together() -> None:
    """The correlation of n independent ranks has the error 1 / sqrt(n)."""
    codes = shipped("fedscale_like").assign_codes(20_000, seed=0).codes.astype(int)
    assert abs(np.corrcoef(codes // 100, codes % 100)[0, 1]) < 5 / 20_000**0.5


def test_names_and_codes_say_the_same() -> None:
    fleet = shipped("flash_like")
    devices, named = fleet.assign_codes(500, seed=2), fleet.assign(500, seed=2)
    assert list(devices) == named == devices.tolist() == devices[:]
    assert [devices[i] for i in (0, 499, -1)] == [named[0], named[499], named[499]]
    assert devices.present == sorted(set(named))
    assert named == fleet.assign(500, seed=2)
    assert named != fleet.assign(500, seed=3)
    assert max(map(len, named)) <= 64


def test_a_million_clients_take_two_bytes_each_and_less_than_a_second() -> None:
    fleet = shipped("fedscale_like")
    start = time.process_time()
    devices = fleet.assign_codes(1_000_000, seed=0)
    assert time.process_time() - start < 1.0
    assert devices.codes.nbytes == 2_000_000
    assert Counter(devices.codes.tolist()).most_common(1)[0][1] < 200


def test_the_shares_shown_are_devices_of_the_fleet() -> None:
    fleet = shipped("fedscale_like")
    assert sum(fleet.weights.values()) == pytest.approx(1)
    assert [fleet.profile(device).name for device in fleet.weights] == list(fleet.weights)


def test_a_fleet_travels_to_another_process() -> None:
    fleet = shipped("flash_like")
    again = pickle.loads(pickle.dumps(fleet))
    assert again == fleet
    assert again.profile("flash_like:10-20") == fleet.profile("flash_like:10-20")


@pytest.mark.parametrize("device", ["phone_mid", "flash_like:1-2", "flash_like:10-100", "fedscale_like:10-10", ""])
def test_a_device_of_another_fleet_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet flash_like: unknown device .* flash_like:00-00 to flash_like:99-99"):
        shipped("flash_like").profile(device)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("base", "phone", "unknown device profile 'phone' (did you mean phone_"),
        ("base", None, "base is missing"),
        ("name", "two words", "name must be at most 58 letters, digits and _ . -, got 'two words'"),
        ("name", "x" * 59, "name must be at most 58 letters"),
        ("name", 3, "name must be at most 58 letters, digits and _ . -, got 3"),
        ("speed", None, "speed is missing"),
        ("speed.unit", "gflops", "speed.unit must be one of ms_per_sample, score, got 'gflops'"),
        ("speed.base_value", 0, "speed.base_value must be greater than 0"),
        ("speed.quantiles", {0.5: 40}, "speed.quantiles must map at least two quantiles"),
        ("speed.quantile", {}, "unknown key speed.quantile (did you mean quantiles"),
        ("network.type", "carrier pigeon", "network.type must be one of wifi, 4g, 5g, ethernet"),
        ("network.up_mbps", {0.5: 3, 0.25: 2}, "network.up_mbps: quantiles must increase, 0.25 follows 0.5"),
        ("network.up_kbps", {}, "unknown key network.up_kbps (did you mean up_mbps"),
        ("network.down_mbps", {0.1: 3, 0.2: -2}, "network.down_mbps[0.2] must be greater than 0 (Mbit/s), got -2"),
        ("memory_mb", {0.5: 4096, 1.0: 512}, "memory_mb: values must not fall, 512 at 1 follows 4096 at 0.5 (MiB)"),
        ("sources.speed", None, "sources.speed is missing"),
        ("sources.memory_mb", None, "sources.memory_mb is missing"),
        ("sources.up_mbps", {"kind": "guessed", "from": "x"}, "sources.up_mbps.kind must be one of measured"),
    ],
)
def test_a_bad_population_is_refused(path: str, value: Any, expected: str) -> None:
    data = copy.deepcopy(config_of("flash_like"))
    *groups, key = path.split(".")
    target = data
    for group in groups:
        target = target[group]
    target[key] = value
    with pytest.raises(ConfigError) as caught:
        QuantileFleet(**data)
    lines = caught.value.problems
    assert any(line.startswith(f"fleet {data['name']}: {expected}") for line in lines), lines
    assert not any("\n" in line for line in lines)


def test_all_faults_of_a_population_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        QuantileFleet(base="fridge", speed={}, network={}, sources={}, name="odd")
    assert len(caught.value.problems) == 1 + 3 + 4 + 4
    assert all(line.startswith("fleet odd: ") for line in caught.value.problems)


@pytest.mark.parametrize("num_clients", [0, -1, 2.5, True])
def test_a_population_of_nobody_is_refused(num_clients: Any) -> None:
    with pytest.raises(ConfigError, match="num_clients must be"):
        shipped("flash_like").assign(num_clients, seed=0)


def test_ranks_by_class_reach_every_device_and_a_strange_one_is_refused() -> None:
    """Through ``config.check`` and ``client.plan``, which both ask a fleet for its devices' classes."""
    from fedpeft.client.plan import rank_plan

    said = ["fleet=fedscale_like", "strategy=flexlora", "method.rank=8"]
    config = cfg.compose([*said, "+method.ranks={phone: 2}", "model.path=x", "partition.seed=0"])
    fleet, method = cfg.build(config["fleet"]), cfg.build(config["method"])
    plan = rank_plan(method, fleet, fleet.assign(30, seed=0))
    assert set(plan.by_device.values()) == {2}
    with pytest.raises(ConfigError, match=r"method\.ranks names toaster, which no client is: the fleet has .*, phone"):
        cfg.check(cfg.compose([*said, "+method.ranks={toaster: 2}"]))
