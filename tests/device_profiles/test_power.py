"""Watts from the files that the kernel shows: here a folder that looks like sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.device_profiles.power import PowerMeter


def write(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    meter = PowerMeter(tmp_path)
    assert meter.kind is None and meter.source == "nothing"
    assert meter.idle_w(0.0) is None


def test_a_discharging_battery(tmp_path: Path) -> None:
    """12.5 W by power_now, in microwatts; a second one by 2 A at 4 V."""
    write(tmp_path / "power_supply" / "BAT0", status="Discharging", power_now=12_500_000)
    write(tmp_path / "power_supply" / "BAT1", status="Discharging", current_now=-2_000_000, voltage_now=4_000_000)
    write(tmp_path / "power_supply" / "AC", online=0)
    meter = PowerMeter(tmp_path)
    assert meter.kind == "battery"
    assert meter.idle_w(0.0) == pytest.approx(20.5)


def test_a_battery_that_charges_says_nothing_of_the_machine(tmp_path: Path) -> None:
    write(tmp_path / "power_supply" / "BAT0", status="Charging", power_now=12_500_000)
    assert PowerMeter(tmp_path).kind is None


def test_a_battery_that_is_plugged_in_meanwhile(tmp_path: Path) -> None:
    battery = tmp_path / "power_supply" / "BAT0"
    write(battery, status="Discharging", power_now=1)
    meter = PowerMeter(tmp_path)
    assert meter.during(lambda: write(battery, status="Charging")) is None


def test_energy_counters_of_whole_processors(tmp_path: Path) -> None:
    """The package counts, its core does not: it is a part of it. 1 J in at most the time that the test takes."""
    package = tmp_path / "powercap" / "intel-rapl:0"
    write(package, energy_uj=5_000_000, max_energy_range_uj=10_000_000)
    write(tmp_path / "powercap" / "intel-rapl:0:0", energy_uj=7_000_000)
    meter = PowerMeter(tmp_path)
    assert meter.kind == "rapl"
    drawn = meter.during(lambda: write(package, energy_uj=6_000_000))
    assert drawn is not None and drawn > 0
    assert meter.during(lambda: None) == 0.0


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    """From 9 of 10 J to 1: 2 J were drawn, as from 1 to 3."""
    package = tmp_path / "powercap" / "intel-rapl:0"
    write(package, energy_uj=9_000_000, max_energy_range_uj=10_000_000)
    meter = PowerMeter(tmp_path)
    drawn = meter.during(lambda: write(package, energy_uj=1_000_000))
    assert drawn is not None and drawn > 0


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    write(tmp_path / "powercap" / "intel-rapl:0", max_energy_range_uj=1)
    assert PowerMeter(tmp_path).kind is None


def test_a_counter_that_goes_away(tmp_path: Path) -> None:
    package = tmp_path / "powercap" / "intel-rapl:0"
    write(package, energy_uj=1)
    meter = PowerMeter(tmp_path)
    assert meter.during((package / "energy_uj").unlink) is None


def test_watts_between_two_moments_are_those_of_the_work_between_them(tmp_path: Path) -> None:
    package = tmp_path / "powercap" / "intel-rapl:0"
    write(package, energy_uj=9_000_000, max_energy_range_uj=10_000_000)
    meter = PowerMeter(tmp_path)
    started, before = meter.begin()
    write(package, energy_uj=2_000_000)
    # 3 J, over the counter's end, in a hundred seconds.
    assert meter.since((started - 100, before)) == pytest.approx(0.03, rel=1e-3)
