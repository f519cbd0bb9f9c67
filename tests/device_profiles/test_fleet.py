"""Fleets: shares kept as exactly as whole clients allow, by seed, and bad mixtures refused."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.device_profiles.fleet import Fleet
from fedpeft.device_profiles.presets import load_profile

FLEETS = sorted(path.stem for path in (conf_dir() / "fleet").glob("*.yaml") if "weights:" in path.read_text("ascii"))


@cache
def shipped(name: str) -> Fleet:
    """Return a fleet as Hydra makes it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        fleet: Fleet = instantiate(compose(overrides=[f"+fleet={name}"]).fleet)
    return fleet


def test_four_fleets_ship() -> None:
    assert {"boards", "laptops", "mixed", "phones"} <= set(FLEETS)


@pytest.mark.parametrize("name", FLEETS)
@pytest.mark.parametrize("num_clients", [1, 2, 7, 20, 333, 1000])
def test_every_count_is_within_one_of_its_share(name: str, num_clients: int) -> None:
    fleet = shipped(name)
    assigned = fleet.assign(num_clients, seed=3)
    counts = Counter(assigned)
    assert len(assigned) == num_clients
    assert set(counts) <= set(fleet.weights)
    assert all(abs(counts[device] - weight * num_clients) < 1 for device, weight in fleet.weights.items())


@pytest.mark.parametrize("name", FLEETS)
def test_a_fleet_has_its_files_name_and_loadable_profiles(name: str) -> None:
    fleet = shipped(name)
    assert fleet.name == name
    assert all(fleet.profile(device) == load_profile(device) for device in fleet.weights)


def test_twenty_clients_hold_the_mixed_fleet_exactly() -> None:
    """.15 .1 .05 .15 .25 .15 .1 .05 of 20 are the whole numbers below."""
    assert Counter(shipped("mixed").assign(20, seed=0)) == {
        "rpi4_4gb": 3,
        "rpi5_8gb": 2,
        "jetson_orin_nano_8gb": 1,
        "phone_low": 3,
        "phone_mid": 5,
        "phone_high": 3,
        "laptop_cpu": 2,
        "laptop_m4": 1,
    }


def test_the_largest_remainder_gets_the_odd_client() -> None:
    """Five clients at .5, .3, .2: quotas 2.5, 1.5, 1.0, floors 2, 1, 1; on a tie the first name wins."""
    fleet = Fleet(weights={"rpi4_4gb": 0.5, "phone_low": 0.3, "laptop_cpu": 0.2})
    assert Counter(fleet.assign(5, seed=0)) == {"rpi4_4gb": 2, "phone_low": 2, "laptop_cpu": 1}
    uneven = Fleet(weights={"rpi4_4gb": 0.6, "phone_low": 0.4})
    assert Counter(uneven.assign(4, seed=0)) == {"rpi4_4gb": 2, "phone_low": 2}


def test_the_seed_decides_and_the_order_of_weights_does_not() -> None:
    weights = {"rpi4_4gb": 0.5, "phone_low": 0.3, "laptop_cpu": 0.2}
    backwards = dict(reversed(weights.items()))
    first = Fleet(weights=weights).assign(100, seed=1)
    assert first == Fleet(weights=backwards).assign(100, seed=1)
    assert first != Fleet(weights=weights).assign(100, seed=2)
    assert first != sorted(first)


def test_a_million_clients_take_less_than_a_second() -> None:
    fleet = shipped("mixed")
    start = time.process_time()
    assigned = fleet.assign(1_000_000, seed=0)
    assert time.process_time() - start < 1.0
    assert len(assigned) == 1_000_000


def test_a_million_clients_take_a_byte_each() -> None:
    devices = shipped("mixed").assign_codes(1_000_000, seed=0)
    assert devices.codes.nbytes == 1_000_000
    assert devices[:5] == shipped("mixed").assign(1_000_000, seed=0)[:5]
    assert devices.present == sorted(shipped("mixed").weights)


@pytest.mark.parametrize(
    ("num_clients", "seed", "expected"),
    [(7, 3, "8dc93cd7b1949ad6"), (1000, 0, "96c3b0f899a8ec0c"), (100_000, 11, "58372ee6c99d0861")],
)
def test_assignments_of_older_runs_stay(num_clients: int, seed: int, expected: str) -> None:
    """Hashes of what version 0.1 assigned: a run is resumed with the devices that it began with."""
    assigned = Fleet(weights={"rpi4_4gb": 0.5, "phone_low": 0.3, "laptop_cpu": 0.2}).assign(num_clients, seed)
    assert hashlib.sha256(",".join(assigned).encode()).hexdigest()[:16] == expected


def test_a_profile_is_read_once() -> None:
    fleet = Fleet(weights={"rpi4_4gb": 1.0})
    assert fleet.profile("rpi4_4gb") is fleet.profile("rpi4_4gb")


def test_a_fleet_travels_to_another_process() -> None:
    fleet = Fleet(weights={"rpi4_4gb": 0.5, "phone_low": 0.5}, name="two")
    assert pickle.loads(pickle.dumps(fleet)) == fleet


def test_what_was_given_is_not_shared() -> None:
    weights = {"rpi4_4gb": 1.0}
    fleet = Fleet(weights=weights)
    weights["phone_low"] = 1.0
    assert dict(fleet.weights) == {"rpi4_4gb": 1.0}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, "weights must map device profiles to shares, got {}"),
        (None, "weights must map device profiles to shares, got None"),
        ({"rpi4_4gb": 0.5, "phone_low": 0.4}, "weights must sum to 1, got 0.9 (divide each by it)"),
        ({"rpi4_4gb": 1.5, "phone_low": -0.5}, "weight of phone_low must be greater than 0"),
        ({"rpi4_4gb": 1.0, "phone_low": 0}, "weight of phone_low must be greater than 0"),
        ({"rpi4_4gb": float("nan")}, "weight of rpi4_4gb must be greater than 0"),
        ({"rpi4_4gb": float("inf")}, "weight of rpi4_4gb must be greater than 0"),
        ({"rpi4_4gb": "all"}, "weight of rpi4_4gb must be a number"),
        (
            {"x" * 60 + ".yaml": 1.0},
            "x" * 60 + ".yaml is a name of 65 characters, at most 64 travel (shorten the path)",
        ),
        ({"rpi4": 1.0}, "unknown device profile 'rpi4' (did you mean rpi4_4gb"),
    ],
)
def test_a_bad_mixture_is_refused(weights: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Fleet(weights=weights, name="odd")
    assert any(line.startswith(f"fleet odd: {expected}") for line in caught.value.problems), caught.value.problems


def test_all_faults_of_a_mixture_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Fleet(weights={"rpi9": 0.5, "fridge": 0.5, "rpi4_4gb": -1})
    assert len(caught.value.problems) == 3


def test_a_rounded_sum_within_a_millionth_is_accepted() -> None:
    third = round(1 / 3, 7)
    fleet = Fleet(weights={"rpi4_4gb": third, "phone_low": third, "laptop_cpu": third})
    assert set(Counter(fleet.assign(999_999, seed=0)).values()) == {333_333}


@pytest.mark.parametrize("num_clients", [0, -1, 2.5])
def test_a_fleet_of_nobody_is_refused(num_clients: Any) -> None:
    with pytest.raises(ConfigError, match="num_clients must be"):
        Fleet(weights={"rpi4_4gb": 1.0}).assign(num_clients, seed=0)
