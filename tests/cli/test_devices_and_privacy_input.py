"""Devices, traces, budgets and ledgers that make no sense, on the command line: one line each, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import refusals

from fedpeft import config as cfg
from fedpeft.device_profiles.presets import load_profile

Simulate = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def simulate(toy: list[str], said: Simulate) -> Simulate:
    """Return a function from overrides to the exit code and the lines on stderr of a run in ``run``."""

    def go(*overrides: str, resume: bool = False) -> tuple[int, list[str]]:
        base = ["resume=run"] if resume else [*toy, "run_dir=run"]
        return said("simulate", *base, *overrides)

    return go


def write(path: str, section: str, **values: Any) -> list[str]:
    """Write a preset with values changed, those given as ... left out; return the overrides of a fleet of it."""
    data = load_profile("rpi4_4gb").to_mapping()
    changed = {**data[section], **values}
    data[section] = {key: value for key, value in changed.items() if value is not ...}
    Path(path).write_text(yaml.safe_dump({**data, "name": "mine"}))
    return weights(f"{path}: 1.0")


def weights(shares: str) -> list[str]:
    return ["~fleet.weights", f"+fleet.weights={{{shares}}}"]


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("compute", {"train_efficiency": ...}, "compute.train_efficiency is missing"),
        ("memory", {"total_mb": -5}, "memory.total_mb must be greater than 0 (MiB), got -5"),
        ("network", {"down_kbps": 5}, "unknown key network.down_kbps (did you mean down_mbps or up_mbps?)"),
        (
            "network",
            {"down_mbps": "60 kbit/s"},
            "network.down_mbps must be a number (Mbit/s) greater than 0, got '60 kbit/s'",
        ),
    ],
)
def test_a_profile_is_refused_by_file_and_number(
    simulate: Simulate, section: str, values: dict[str, Any], line: str
) -> None:
    overrides = write("mine.yaml", section, **values)
    assert simulate(*overrides) == (2, [f"fedpeft: fleet mixed: device profile mine.yaml: {line}"])
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ("rpi4_4gb: 0.5, phone_low: 0.4", "weights must sum to 1, got 0.9 (divide each by it)"),
        (
            "rpi4_4gb: 1.5, phone_low: -0.5",
            "weight of phone_low must be greater than 0 (share of the clients), got -0.5",
        ),
    ],
)
def test_a_fleets_shares_are_refused(simulate: Simulate, shares: str, line: str) -> None:
    assert simulate(*weights(shares)) == (2, [f"fedpeft: fleet mixed: {line}"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0,0,10\n2,0,10\n", "trace trace.csv line 3: client 1 is missing, got 2 after 0"),
        ("0,0,10\n0,5,20\n", "trace trace.csv line 3: client 0 starts at 5 s, before its last interval ends at 10 s"),
        (None, "cannot read trace trace.csv: [Errno 2] No such file or directory: 'trace.csv'"),
    ],
)
def test_a_trace_is_refused_before_anything_is_loaded(simulate: Simulate, text: str | None, line: str) -> None:
    if text is not None:
        Path("trace.csv").write_text("client_id,start_s,end_s\n" + text)
    overrides = write("mine.yaml", "availability", model="trace", trace="trace.csv")
    assert simulate(*overrides, "devices.availability=true") == (2, [f"fedpeft: {line}"])
    assert not Path("run").exists()


LEVELS = ("client_level", "example_level", "local")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("epsilon", ["0", "-1", "much"])
def test_an_epsilon_that_is_no_budget_is_refused(simulate: Simulate, level: str, epsilon: str) -> None:
    shown = repr(epsilon) if epsilon == "much" else epsilon
    code, lines = simulate(f"privacy={level}", f"privacy.epsilon={epsilon}")
    assert (code, lines) == (2, [f"fedpeft: privacy.epsilon must be a positive number, or null, got {shown}"])


@pytest.mark.parametrize("level", LEVELS)
def test_a_delta_that_promises_nothing_is_refused(simulate: Simulate, level: str) -> None:
    """6 clients, of which the largest trains on 49 of its examples."""
    code, (line,) = simulate(f"privacy={level}", "privacy.delta=0.5")
    units = 49 if level == "example_level" else 6
    assert code == 2
    assert line.startswith(f"fedpeft: privacy.delta must be below 1 / {units}, one over the number of units, got 0.5")


@pytest.mark.parametrize(("level", "delta"), [("client_level", 0.1), ("local", 0.01), ("example_level", 0.001)])
def test_a_budget_that_does_not_last_for_one_round_is_refused(simulate: Simulate, level: str, delta: float) -> None:
    overrides = (f"privacy={level}", f"privacy.delta={delta}", "privacy.epsilon=0.1", "privacy.noise_multiplier=0.5")
    code, (line,) = simulate(*overrides)
    assert code == 2
    assert "round" in line
    assert "privacy.epsilon=0.1" in line


def test_a_budget_that_is_spent_and_a_ledger_that_was_edited_are_refused(simulate: Simulate) -> None:
    """The budget lasts for some rounds; the run is over then, and its ledger counts for a new run beside it too."""
    private = ("privacy=client_level", "privacy.epsilon=1.2", "privacy.noise_multiplier=2.5", "privacy.delta=0.1")
    assert simulate(*private, "cohort_size=6", "rounds=9", "client.local_steps=1")[0] == 0
    done = len(Path("run/rounds.jsonl").read_text().splitlines())
    assert 1 <= done < 9
    before = {path: path.read_bytes() for path in Path("run").rglob("*.json*")}
    code, (line,) = simulate(resume=True)
    assert code == 2
    assert line.startswith("fedpeft: budget spent: population is at epsilon")
    Path("new").mkdir()
    shutil.copy("run/ledger.jsonl", "new")
    code, (line,) = simulate(*private, "cohort_size=6", "rounds=9", "run_dir=new")
    assert code == 2
    assert line.startswith("fedpeft: budget spent: population is at epsilon")
    ledger = Path("run/ledger.jsonl")
    ledger.write_text(ledger.read_text().replace('"noise_multiplier":2.5', '"noise_multiplier":9.5', 1))
    code, (line,) = simulate(resume=True)
    edited = f"fedpeft: line 1 of {ledger.absolute()} was edited: its content does not have its hash"
    assert (code, line) == (2, f"{edited} (restore the ledger from a copy, or start a new run)")
    ledger.write_bytes(before[ledger])
    assert {path: path.read_bytes() for path in Path("run").rglob("*.json*")} == before


@pytest.mark.parametrize(
    "overrides",
    [
        ["fleet=phones", "selection=oort", "round.deadline_s=600"],
        ["privacy=client_level", "privacy.epsilon=8"],
        ["privacy=example_level", "privacy.epsilon=8"],
        ["fleet=flash_like", "devices.fit=true", "devices.availability=true", "strategy=flexlora"],
        ["round.buffer_size=5", "selection=energy_aware", "fleet=phones"],
    ],
    ids=" ".join,
)
def test_what_the_pages_name_composes(overrides: list[str]) -> None:
    config = cfg.compose(overrides)
    assert refusals(config) == []
    assert len(refusals({**config, "rounds": 0})) == 1, "the check looks at such a config"


def test_the_report_shows_devices_drops_and_the_privacy_card(simulate: Simulate) -> None:
    """Clients of a fleet of phones, under a deadline that nobody can meet, with privacy for clients."""
    run = ("fleet=phones", "round.deadline_s=0.05", "cohort_size=6", "rounds=2", "report=true")
    private = ("privacy=client_level", "privacy.epsilon=null", "privacy.noise_multiplier=3")
    assert simulate(*run, *private)[0] == 1, "no reply was good"
    clients = [json.loads(line) for line in Path("run/clients.jsonl").read_text().splitlines()]
    assert {row["outcome"] for row in clients} == {"late"}
    page = Path("run/report.html").read_text()
    for words in ("phone_low", "after the deadline", "one client", "Poisson", "peak memory", "energy"):
        assert words.lower() in page.lower(), words
