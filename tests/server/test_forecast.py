"""A forecast is what a run then counts, and moves as the config moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy as maker

from fedpeft import config as cfg
from fedpeft.cli.launch import launch, new_config
from fedpeft.client.assumed import Assumed
from fedpeft.client.blueprint import draw
from fedpeft.client.building import build_runtime
from fedpeft.core.paths import conf_dir
from fedpeft.core.types import Work
from fedpeft.device_profiles.memory import PROCESS_MB
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.presets import load_profile
from fedpeft.server.app import build_strategy
from fedpeft.server.fitting import Fitting
from fedpeft.server.forecast import Forecast, array_bytes, forecast

LENGTH, WORDS = 10, 8
DEVICES = ["phone_low", "rpi5_8gb"]


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a toy run on two devices whose texts are all ten tokens long: eight words and two marks."""
    return [*maker.alike(tmp_path_factory.mktemp("alike"), WORDS), "rounds=1", "devices.jitter=false"]


def forecasts(*overrides: str, devices: list[str] = DEVICES, fitted: bool = False, **assumed: Any) -> list[Forecast]:
    config = cfg.compose(overrides)
    return forecast(draw(config, Assumed(**{"seq_len": LENGTH, **assumed}), devices), fitted=fitted)


@pytest.mark.parametrize(
    "more",
    [
        ["engine.workers=1"],
        ["strategy=hetlora", "codec=int8", "method.ranks={phone: 1}", "client.gradient_checkpointing=true"],
    ],
)
def test_a_run_counts_what_was_forecast(alike: list[str], tmp_path: Path, more: list[str]) -> None:
    """Bytes, seconds, joules and memory of each client of a real first round, to the digits that are on record."""
    fleet = ["fleet=laptops", "~fleet.weights", "+fleet.weights={phone_low: 0.5, rpi5_8gb: 0.5}"]
    config = new_config({**cfg.compose([*alike, *fleet, *more]), "run_dir": str(tmp_path / "run")})
    assert launch(config, []) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    counted = {row["device"]: row for row in rows if row["round"] == 1}
    assert counted.keys() == set(DEVICES)
    for one in forecasts(*alike, *fleet, *more):
        row = counted[one.device]
        assert one.rank == row["rank"]
        assert (one.work.bytes_down, one.work.bytes_up) == (row["bytes_down"], row["bytes_up"])
        told = {"down": one.cost.down_s, "compute": one.cost.compute_s, "up": one.cost.up_s}
        assert row["virtual_s"] == pytest.approx(told, abs=1e-6)
        assert row["energy_j"] == pytest.approx(one.cost.energy_j, abs=1e-3)
        assert row["peak_memory_mb"] == pytest.approx(one.cost.peak_memory_mb, abs=0.06)


def test_it_is_the_predicted_cost_of_work_counted_by_hand(alike: list[str]) -> None:
    """LoRA r2 on query and value of 2 layers of width 32: 2 * 2 * 2 * 32 * 2 values of 4 bytes; a head of 2 x 32 + 2.

    Each array has a header of 128 bytes and its name. 3 steps of 8 texts of 10 tokens.
    """
    (one,) = forecasts(*alike, devices=["rpi5_8gb"])
    values = 2 * 2 * 2 * 32 * 2 + 2 * 32 + 2
    blueprint = draw(cfg.compose(alike), Assumed(seq_len=LENGTH), ["rpi5_8gb"])
    names = sum(map(len, blueprint.shared_spec))
    assert array_bytes(blueprint.shared_spec) == 4 * values + 128 * 10 + names
    assert one.work.num_steps == 3
    assert one.work.flops == 3 * blueprint.step_flops(0, frozenset(blueprint.shared_spec)).step(8, 10)
    assert one.work.peak_memory_bytes > PROCESS_MB * 2**20
    assert one.cost == predict(load_profile("rpi5_8gb"), one.work)
    assert 0 < one.work.bytes_down - array_bytes(blueprint.shared_spec) < 600
    assert 0 < one.work.bytes_up - array_bytes(blueprint.shared_spec) < 600


def the(found: list[Forecast]) -> Work:
    return found[0].work


def test_figures_move_as_the_config_moves(alike: list[str]) -> None:
    """More rank: bytes up, hardly any time. More examples a step: time and memory. Steps and tokens: time."""
    base = the(forecasts(*alike))
    rank = the(forecasts(*alike, "method.rank=8"))
    assert rank.bytes_up - base.bytes_up == 2 * 2 * 6 * 64 * 4
    assert base.flops < rank.flops < 1.2 * base.flops
    batch = the(forecasts(*alike, "client.batch_size=16"))
    assert batch.flops > 1.9 * base.flops and batch.peak_memory_bytes > base.peak_memory_bytes
    assert batch.bytes_up == base.bytes_up
    steps = the(forecasts(*alike, "client.local_steps=6"))
    assert steps.flops == 2 * base.flops and steps.peak_memory_bytes == base.peak_memory_bytes
    shorter = the(forecasts(*alike, seq_len=5))
    assert shorter.flops < base.flops and shorter.peak_memory_bytes < base.peak_memory_bytes
    recomputed = the(forecasts(*alike, "client.gradient_checkpointing=true"))
    assert recomputed.flops > 1.2 * base.flops
    packed = the(forecasts(*alike, "codec=float16"))
    assert packed.bytes_up < base.bytes_up and packed.bytes_down == base.bytes_down


def test_strategies_send_what_they_send(alike: list[str]) -> None:
    """FFA-LoRA sends no A, RoLoRA takes no A back in round 1, who trains alone sends nothing."""
    base = the(forecasts(*alike))
    ffa = the(forecasts(*alike, "strategy=ffa_lora"))
    assert ffa.bytes_down < base.bytes_down and ffa.bytes_up < base.bytes_up and ffa.flops < base.flops
    rolora = the(forecasts(*alike, "strategy=rolora"))
    assert rolora.bytes_down >= base.bytes_down and rolora.bytes_up == ffa.bytes_up
    alone = the(forecasts(*alike, "strategy=local_only"))
    assert alone.bytes_up < 1000 and alone.flops == base.flops


def test_a_strategy_of_flower_itself(alike: list[str]) -> None:
    stock = ["~strategy", "+strategy={_target_: flwr.serverapp.strategy.FedAvg}"]
    assert the(forecasts(*alike, *stock)).bytes_down == the(forecasts(*alike)).bytes_down


def test_fitting_chooses_what_the_run_would_choose(
    alike: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board with just more memory than the process needs, under a rule that bears mixed ranks."""
    monkeypatch.chdir(tmp_path)
    text = (conf_dir() / "device_profile" / "rpi4_4gb.yaml").read_text()
    room = round((PROCESS_MB + 1.1) * 1.05 / 0.7)
    Path("small.yaml").write_text(text.replace("total_mb: 4096", f"total_mb: {room}"))
    more = ["strategy=hetlora", "method.rank=8", "client.batch_size=64", "devices.fit=true"]
    devices = ["small.yaml", "rpi5_8gb"]
    found = {one.device: one for one in forecasts(*alike, *more, devices=devices, fitted=True)}
    config = new_config({**cfg.compose([*alike, *more]), "run_dir": str(tmp_path / "run")})
    config["fleet"] = {"_target_": "fedpeft.device_profiles.fleet.Fleet", "weights": dict.fromkeys(devices, 0.5)}
    fitting = Fitting.of(build_runtime(config), build_strategy(config), cfg.build(config["fleet"]))
    assert {device: one.choice for device, one in found.items()} == dict(fitting.choices)
    assert found["small.yaml"].fits and found["rpi5_8gb"].fits
    assert found["small.yaml"].choice != found["rpi5_8gb"].choice
    unfitted, _ = forecasts(*alike, *more, devices=devices)
    assert not unfitted.fits and unfitted.choice is None
