"""Clients that protect themselves, through whole runs: their ledgers, budgets, and what they tell."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_runs import config_of, error_lines, killed, resume, rows, run, summary, told, witnessed

from fedpeft.privacy.ledger import LEDGER, Ledger, client_unit

Make = Callable[..., dict[str, Any]]
EXAMPLE = ("privacy=example_level", "privacy.delta=1e-3")
LOCAL = ("privacy=local", "privacy.delta=0.01", "privacy.epsilon=1000")


def clients_of(run_dir: Path) -> dict[int, Ledger]:
    found = sorted((run_dir / "checkpoints" / "clients").glob(f"client-*/{LEDGER}"))
    return {int(path.parent.name.removeprefix("client-")): Ledger(path, read_only=True) for path in found}


@pytest.fixture(scope="module", params=[EXAMPLE, LOCAL], ids=["example", "local"])
def on_clients(request: pytest.FixtureRequest, toy_module: Make) -> Path:
    """Two rounds in which clients protect themselves."""
    overrides = request.param
    return run(toy_module(*overrides, *witnessed(), "rounds=2", name=overrides[0].partition("=")[2]))


def test_each_client_books_its_own_rounds_and_the_run_states_the_largest(on_clients: Path) -> None:
    took_part: dict[int, list[int]] = {}
    for row in rows(on_clients, "clients.jsonl"):
        assert row["outcome"] == "ok"
        took_part.setdefault(row["client_id"], []).append(row["round"])
    ledgers = clients_of(on_clients)
    assert {client: [one.server_round for one in ledger.entries] for client, ledger in ledgers.items()} == took_part
    delta = summary(on_clients)["delta"]
    spent = {client: ledger.epsilon(client_unit(client), delta) for client, ledger in ledgers.items()}
    assert rows(on_clients, "rounds.jsonl")[-1]["epsilon"] == max(spent.values()) > 0
    assert max(spent.values()) <= config_of(on_clients)["privacy"]["epsilon"]


def test_replies_carry_no_loss_and_everybody_says_one_example(on_clients: Path) -> None:
    for given in told(on_clients):
        assert len(given) == 4
        for one in given:
            assert one["weight"] == 1
            assert set(one["metrics"]) == {
                "adapter-bytes",
                "head-bytes",
                "num-examples",
                "train-cpu-s",
                "train-steps",
            }
    assert all(row["train_loss"] is None for row in rows(on_clients, "rounds.jsonl"))
    assert all(row["num_examples"] is None for row in rows(on_clients, "clients.jsonl"))


@pytest.mark.parametrize("level", [EXAMPLE, LOCAL], ids=["example", "local"])
def test_a_crash_counts_twice_and_a_spent_client_is_asked_in_vain(
    toy_module: Make, tmp_path: Path, level: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """All six take part in each of three rounds, for which the budgets are made; round 2 is killed and done again.

    Each client has then spent three releases when round 3 begins, and answers that its budget is spent.
    """
    name = f"{request.node.callspec.id}-crashed"
    config = toy_module(*level, *witnessed(tmp_path / "notes", dies_in=2), "cohort_size=6", name=name)
    run_dir = killed(config)
    assert {client: len(ledger.entries) for client, ledger in clients_of(run_dir).items()} == dict.fromkeys(range(6), 2)
    assert resume(config) == 0
    for ledger in clients_of(run_dir).values():
        assert [one.server_round for one in ledger.entries] == [1, 2, 2]
    last = [row for row in rows(run_dir, "clients.jsonl") if row["round"] == 3]
    assert [row["outcome"] for row in last] == ["budget"] * 6
    assert all("budget" in row["detail"] and row["bytes_up"] == 0 for row in last)
    (*_, row) = rows(run_dir, "rounds.jsonl")
    assert (row["num_replies"], row["dropped"]) == (0, {"budget": 6})
    assert row["kept"]
    assert row["epsilon"] <= config_of(run_dir)["privacy"]["epsilon"]
    assert (run_dir / "adapter").exists()


@pytest.mark.parametrize("how", ["removed", "truncated", "edited"])
def test_what_clients_have_spent_cannot_be_forgotten(
    on_clients: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(on_clients, copy)
    victim = sorted((copy / "checkpoints" / "clients").glob("client-*"))[2]
    text = (victim / LEDGER).read_bytes()
    if how == "removed":
        shutil.rmtree(victim)
    elif how == "truncated":
        (victim / LEDGER).write_bytes(b"".join(text.splitlines(keepends=True)[:-1]))
    else:
        (victim / LEDGER).write_bytes(text.replace(b'"noise_multiplier":', b'"noise_multiplier":1', 1))
    capfd.readouterr()
    assert resume({**config_of(on_clients), "run_dir": str(copy)}, rounds=3) == 2
    (line,) = error_lines(capfd)
    assert ("checkpoints/clients is not whole" if how == "removed" else str(victim / LEDGER)) in line
    assert len(rows(copy, "rounds.jsonl")) == 2


def test_a_refused_start_leaves_no_directory_behind(toy_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """Which delta is too large is known when the examples are counted; a directory of one's own stays."""
    config = toy_config("privacy=example_level", "privacy.delta=0.03", name="refused")
    run_dir = run(config, code=2)
    (line,) = error_lines(capfd)
    assert "privacy.delta must be below 1 / " in line
    assert not run_dir.exists()
    run_dir.mkdir(parents=True)
    run(config, code=2)
    assert (run_dir / "config.yaml").exists()


@pytest.mark.parametrize("level", [(), ("privacy=local", "privacy.delta=0.01", "privacy.epsilon=1000")])
def test_what_an_error_says_stays_with_a_private_client(toy_config: Make, level: tuple[str, ...]) -> None:
    """Without privacy it goes to the server, which can then say what is wrong."""
    config = toy_config(*level, "rounds=1") | {"codec": {"_target_": "toy_runs.Indiscreet"}}
    run_dir = run(config, code=1)
    details = [row["detail"] for row in rows(run_dir, "clients.jsonl")]
    assert [row["outcome"] for row in rows(run_dir, "clients.jsonl")] == ["error"] * 4
    assert all("ValueError" in detail and ("w17" in detail) != bool(level) for detail in details)
