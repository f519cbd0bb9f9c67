"""The profile in the documentation: a reader who takes it as a start has every number that a prediction reads."""

from __future__ import annotations

import pages
import pytest
import yaml

from fedpeft.core.types import Work
from fedpeft.device_profiles.fields import iter_numbers, iter_paths
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.schema import DeviceProfile

PAGE = "docs/devices-simulated.md"
OF_OTHER_MODELS = {"availability.phase_h", "availability.trace"}


def block_of(name: str) -> str:
    """Return the text of a file that the page writes."""
    return next(block.text for block in pages.blocks(PAGE) if block.file_name == name)


def test_the_example_is_sound_and_names_every_key() -> None:
    data = yaml.safe_load(block_of("my_board.yaml"))
    DeviceProfile.from_mapping(data)
    groups = {path: value for path, value in data.items() if isinstance(value, dict) and path != "provenance"}
    said = set(data) | {f"{group}.{key}" for group, values in groups.items() for key in values}
    known = {path for path in iter_paths(DeviceProfile) if path.count(".") < 2}
    assert known - said <= OF_OTHER_MODELS
    assert said <= known


def test_every_key_of_the_example_is_explained() -> None:
    body = block_of("my_board.yaml").split("provenance:")[0].splitlines()[1:]
    assert not [line for line in body if "#" not in line and not line.endswith(":")]


def test_every_number_has_a_source_of_its_own_kind() -> None:
    profile = DeviceProfile.from_mapping(yaml.safe_load(block_of("my_board.yaml")))
    kinds = {path: profile.source_of(path).kind for path, _, _ in iter_numbers(DeviceProfile, profile.to_mapping())}
    assert set(kinds.values()) == {"measured", "published", "derived", "assumed"}
    assert kinds["compute.achievable_gflops.fp32"] == "measured"
    assert kinds["compute.train_efficiency"] == "assumed"


def test_the_examples_costs_by_hand() -> None:
    """41 GFLOP/s at .85 are 34.85; 300 s of load, then .7 of the speed; a hundredth of the bits goes twice.

    1.5e13 FLOPs: 430.416069 s of load, 300 + 130.416069 / .7 = 486.308670 s. 1 MB up: .022 + 8 / (.956 * .99 * 11) =
    .022 + .768430 = .790430 s, and down .022 + .176098 = .198098 s.
    """
    profile = DeviceProfile.from_mapping(yaml.safe_load(block_of("my_board.yaml")))
    cost = predict(profile, Work(flops=1.5e13, bytes_down=10**6, bytes_up=10**6))
    assert cost.compute_s == pytest.approx(486.308670, abs=1e-5)
    assert cost.up_s == pytest.approx(0.790430, abs=1e-6)
    assert cost.down_s == pytest.approx(0.198098, abs=1e-6)
    assert cost.energy_j == pytest.approx(2.4 * cost.total_s + 4.4 * cost.compute_s, rel=1e-12)
