"""What a real device tells of a round, and a simulated one does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.client import own as module
from fedpeft.client.own import OwnData, measuring
from fedpeft.device_profiles.power import PowerMeter


def test_a_simulated_client_tells_nothing() -> None:
    with measuring(None) as found:
        pass
    assert found == {}


@pytest.mark.parametrize("link", ['{"down_s": 1.5}', '{"down_s": "x"}', "no json", None])
def test_seconds_and_memory_are_told_after_the_work(tmp_path: Path, link: str | None) -> None:
    if link is not None:
        (tmp_path / "link.json").write_text(link)
    with measuring(OwnData(path=str(tmp_path), client_id=0, state_dir=str(tmp_path))) as found:
        assert found == {}
    assert 0 <= found["train-wall-s"] < 60
    assert 10 < found["peak-memory-mb"] < 1e5
    assert found.get("down-s") == (1.5 if link and "1.5" in link else None)


def test_joules_are_watts_times_the_rounds_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    battery = tmp_path / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    (battery / "status").write_text("Discharging")
    (battery / "power_now").write_text("8000000")
    monkeypatch.setattr(module, "PowerMeter", lambda: PowerMeter(tmp_path))
    with measuring(OwnData(path=str(tmp_path), client_id=0)) as found:
        pass
    assert found["energy-j"] == pytest.approx(8 * found["train-wall-s"])


def test_a_machine_that_does_not_say_what_it_draws_tells_no_joules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PowerMeter", lambda: PowerMeter(tmp_path))
    with measuring(OwnData(path=str(tmp_path), client_id=0)) as found:
        pass
    assert "energy-j" not in found
