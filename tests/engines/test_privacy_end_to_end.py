"""Privacy through whole runs: what is booked, spent, told and kept, and what a crash or an editor can do to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from toy_runs import (
    checkpoint,
    error_lines,
    fleet,
    killed,
    population,
    resume,
    rows,
    run,
    summary,
    told,
    witnessed,
    write_profile,
)

from fedpeft.cli.launch import launch
from fedpeft.client.building import build_runtime
from fedpeft.privacy.accounting import epsilon
from fedpeft.privacy.ledger import LEDGER, POPULATION
from fedpeft.server.checkpoint import find_checkpoints

Make = Callable[..., dict[str, Any]]
CLIENT = ("privacy=client_level", "privacy.epsilon=20")
FREE = ("privacy=client_level", "privacy.epsilon=null", "privacy.noise_multiplier=4")
"""Without a budget, so that a run may be continued."""


# -- client level ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private(toy_module: Make) -> Path:
    """Three rounds with a budget that is made for three, under the eyes of a tracker and a witness."""
    return run(toy_module(*CLIENT, *witnessed(), "tracking=[tensorboard]", "checkpoint.keep=10", name="private"))


def test_every_round_is_one_release_and_epsilon_is_what_the_ledger_says(private: Path) -> None:
    ledger = population(private)
    assert [(one.server_round, one.unit) for one in ledger.entries] == [(r, POPULATION) for r in (1, 2, 3)]
    releases = ledger.releases(POPULATION)
    delta = summary(private)["delta"]
    spent = [epsilon(releases[:count], delta) for count in (1, 2, 3)]
    assert [row["epsilon"] for row in rows(private, "rounds.jsonl")] == spent == sorted(spent)
    assert spent[-1] <= 20
    promised = json.loads((private / "privacy.json").read_text())
    assert (promised["spent"], promised["releases"], promised["noise_multiplier"]) == (
        spent[-1],
        3,
        releases[0].noise_multiplier,
    )
    assert summary(private)["epsilon"] == spent[-1]


def test_the_strategy_is_given_one_release_and_nothing_that_clients_measured(private: Path) -> None:
    assert told(private) == [[{"client_id": -1, "weight": 1, "metrics": []}]] * 3


def test_no_file_tells_what_clients_measured_or_hold(private: Path) -> None:
    """Losses and counts of examples; the server's own evaluation stays."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for row in rows(private, "rounds.jsonl"):
        assert row["train_loss"] is None
        assert set(row["eval"]) <= {"accuracy", "loss"} | {f"accuracy/{name}" for name in ("north", "south")} | {
            "accuracy/east",
            "accuracy/west",
        }
    clients = rows(private, "clients.jsonl")
    assert clients
    assert all(row["num_examples"] is None and not {"loss", "train_loss"} & row.keys() for row in clients)
    assert not (private / "evaluations.jsonl").exists() or not rows(private, "evaluations.jsonl")
    data = json.loads((private / "data.json").read_text())
    assert all(client.keys() == {"client_id", "device"} for client in data["clients"])
    seen = EventAccumulator(str(private / "tensorboard"))
    seen.Reload()
    tags = seen.Tags()["scalars"]
    assert "epsilon" in tags
    assert not [tag for tag in tags if "train_loss" in tag or "num_examples" in tag]


def test_a_crash_between_booking_and_checkpoint_counts_twice_and_the_budget_ends_the_run(
    toy_module: Make, tmp_path: Path
) -> None:
    """Round 2 is killed when its release is on the ledger and its checkpoint, due every second round, is not.

    The run begins anew with two releases spent; the budget is made for three, so one more round is run, and the model
    of that round is saved although no checkpoint was due.
    """
    config = toy_module(*CLIENT, *witnessed(tmp_path / "notes", dies_in=2), "checkpoint.every=2", name="crashed")
    run_dir = killed(config)
    assert [one.server_round for one in population(run_dir).entries] == [1, 2]
    assert not find_checkpoints(run_dir / "checkpoints")
    assert resume(config) == 0
    ledger = population(run_dir)
    assert [one.server_round for one in ledger.entries] == [1, 2, 1]
    (row,) = rows(run_dir, "rounds.jsonl")
    found = summary(run_dir)
    assert row["epsilon"] == found["epsilon"] == ledger.epsilon(POPULATION, found["delta"]) <= 20
    assert found["status"] == "finished"
    assert found["stopped"].startswith("budget spent: population is at epsilon")
    assert checkpoint(run_dir).server_round == 1
    saved = (run_dir / "adapter" / "adapter_model.safetensors").stat().st_size
    assert saved > 1000


def test_a_run_that_its_budget_ended_cannot_go_on_and_loses_nothing(
    toy_module: Make, private: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(private, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    config = toy_module(*CLIENT, *witnessed(), "tracking=[tensorboard]", "checkpoint.keep=10", name="private")
    config |= {"run_dir": str(copy)}
    assert resume(config, rounds=5) == 2
    (line,) = error_lines(capfd)
    assert line.startswith("fedpeft: budget spent: population is at epsilon")
    assert str(copy / LEDGER) in line
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed <= {"config.yaml"}


def damage(run_dir: Path, how: str) -> bytes:
    """Damage a ledger of three lines, and return what it was."""
    path = run_dir / LEDGER
    before = path.read_bytes()
    kept = before.splitlines(keepends=True)
    if how == "edited":
        path.write_bytes(before.replace(b'"noise_multiplier":4', b'"noise_multiplier":9', 1))
    elif how == "truncated":
        path.write_bytes(b"".join(kept[:-1]))
    elif how == "reordered":
        path.write_bytes(b"".join(reversed(kept)))
    else:
        path.unlink()
    return before


@pytest.fixture(scope="module")
def unlimited(toy_module: Make) -> dict[str, Any]:
    """The config of a run of two rounds without a budget, in which all clients take part."""
    config = toy_module(*FREE, "cohort_size=6", "rounds=2", name="unlimited")
    run(config)
    return config


def test_two_runs_of_one_seed_differ(toy_module: Make, unlimited: dict[str, Any]) -> None:
    """Noise is nobody's to foresee: the same noise twice would cancel out of a difference. All else is alike."""
    again = run(toy_module(*FREE, "cohort_size=6", "rounds=1", name="again"))
    one, two = (
        load_file(folder / "checkpoints" / "round-0001" / "tensors.safetensors")
        for folder in (Path(unlimited["run_dir"]), again)
    )
    assert one.keys() == two.keys()
    assert not any(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("edited", "line 1 of {path} was edited"),
        ("truncated", "{path} lacks round 2 of population, which the run has on record"),
        ("reordered", "line 1 of {path} has number 1 where 0 belongs"),
        ("missing", "{path} cannot be opened: No such file"),
    ],
)
def test_a_damaged_ledger_is_refused_on_resume_and_nothing_is_lost(
    unlimited: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unlimited["run_dir"], copy)
    before = damage(copy, how)
    config = {**unlimited, "run_dir": str(copy)}
    capfd.readouterr()
    assert resume(config, rounds=3) == 2
    (line,) = error_lines(capfd)
    assert words.format(path=copy / LEDGER) in line
    assert len(rows(copy, "rounds.jsonl")) == 2
    assert summary(copy)["status"] == "finished"
    if how == "missing":
        (copy / LEDGER).write_bytes(before)
        assert resume(config, rounds=3) == 0
        assert [one.server_round for one in population(copy).entries] == [1, 2, 3]


def test_a_resumed_promise_states_the_noise_that_is_added(toy_module: Make, tmp_path: Path) -> None:
    """Noise is fitted to the rounds at first; more of them change neither it nor the budget."""
    config = toy_module(*CLIENT, *witnessed(tmp_path / "notes", dies_in=2), name="longer")
    run_dir = killed(config)
    (first, _) = population(run_dir).releases(POPULATION)
    assert resume(config, rounds=9) == 0
    promised = json.loads((run_dir / "privacy.json").read_text())
    assert promised["noise_multiplier"] == first.noise_multiplier
    assert {one.noise_multiplier for one in population(run_dir).releases(POPULATION)} == {first.noise_multiplier}
    assert population(run_dir).epsilon(POPULATION, promised["delta"]) <= 20
    assert summary(run_dir)["stopped"]


def test_an_empty_cohort_releases_noise(toy_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 clients one is there, whose coin falls once in 60 times: one round in three is empty for sure (1 - 5e-6).

    The model changes all the same, and every round is booked.
    """
    monkeypatch.chdir(tmp_path)
    spans = ["0,0,1000000", *(f"{client},2000000,3000000" for client in range(1, 60))]
    Path("trace.csv").write_text("\n".join(["client_id,start_s,end_s", *spans]) + "\n")
    write_profile(Path("guest.yaml"), availability={"model": "trace", "trace": "trace.csv"})
    config = toy_config(*FREE, "num_clients=60", "cohort_size=1", "devices.availability=true", "checkpoint.keep=9")
    launch(config | {"fleet": fleet(guest=1.0)}, [])
    run_dir = Path(config["run_dir"])
    empty = [row["round"] for row in rows(run_dir, "rounds.jsonl") if row["cohort_size"] == 0]
    assert empty
    assert len(population(run_dir).entries) == 3
    before = build_runtime(config | {"fleet": fleet(guest=1.0)}).initial
    for server_round in (1, 2, 3):
        folder = run_dir / "checkpoints" / f"round-{server_round:04d}"
        after = load_file(folder / "tensors.safetensors")
        assert not any(np.array_equal(after[key], before[key]) for key in after), f"round {server_round}"
        before = after
    assert all(row["kept"] is None for row in rows(run_dir, "rounds.jsonl"))


def test_no_client_is_judged_by_others(toy_config: Make) -> None:
    """A cap on the round's median would let one client decide whether another counts. Rate 1: all six come."""
    strict = ("guard.norm_factor=1.0001", "cohort_size=6", "rounds=1")
    plain = run(toy_config(*strict, name="plain"))
    assert rows(plain, "rounds.jsonl")[0]["dropped"].get("rejected:norm")
    assert rows(run(toy_config(*strict, *FREE, name="private")), "rounds.jsonl")[0]["dropped"] == {}


def test_a_refused_reply_does_not_tell_how_long_it_was(toy_config: Make) -> None:
    run_dir = run(toy_config(*FREE, "guard.max_norm=1e-9", "cohort_size=6", "rounds=1"), code=1)
    assert {row["outcome"] for row in rows(run_dir, "clients.jsonl")} == {"rejected:norm"}
    assert {row["detail"] for row in rows(run_dir, "clients.jsonl")} == {"not told, because the run is private"}
    assert len(population(run_dir).entries) == 1
