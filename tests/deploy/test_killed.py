"""Killed with -9 in mid-round, one after the other: training, SuperNode, SuperLink, ServerApp, launcher.

    python -m pytest -m slow tests/deploy/test_killed.py -s

prints how long each took to recover, from the kill to the end of the next whole round.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from real_federation import Federation, federation, smaller, write_own_files

from fedpeft.engines.deploy.processes import is_alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS = 7
Row = dict[str, object]


@pytest.fixture
def running(toy: list[str], tmp_path: Path) -> Iterator[Federation]:
    """Three devices whose rounds take some seconds, so that a kill falls into one."""
    kept = [one for one in toy if not one.startswith(("client.local_steps", "rounds"))]
    overrides = [*smaller(kept), f"rounds={ROUNDS}", "client.local_steps=600", "client.lr=0.001"]
    with federation(tmp_path, write_own_files(overrides, tmp_path), overrides) as made:
        made.start_server("report=false")
        for number in range(3):
            made.start_client(number)
        yield made


def rows(made: Federation, name: str) -> list[Row]:
    path = made.run_dir / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(true: Callable[[], object], made: Federation, what: str, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what}:\n{made.everything()}"
        time.sleep(0.05)


def rounds(made: Federation) -> int:
    return len(rows(made, "rounds.jsonl"))


def training(made: Federation, number: int) -> list[int]:
    """Return the process ids of a device's forks."""
    parent = psutil.Process(made.processes[f"client-{number}"].pid)
    return [one.pid for one in parent.children() if "deploy.node" not in " ".join(one.cmdline())]


def descendant(made: Federation, process: str, word: str) -> int:
    found = psutil.Process(made.processes[process].pid).children(recursive=True)
    # One that has just ended has no command line any more.
    return next(one.pid for one in found if is_alive(one) and word in " ".join(one.cmdline()))


def kill_in_mid_round(made: Federation, what: str, pid: Callable[[], int]) -> None:
    before = rounds(made)
    wait_until(lambda: any(training(made, number) for number in range(3)), made, "nobody trains")
    killed = pid()
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: rounds(made) > before and not psutil.pid_exists(killed), made, f"no round after {what}")
    print(f"{what}: the round's end {time.monotonic() - began:.1f} s after the kill")


def test_a_run_survives_every_kill(running: Federation) -> None:
    """No round is missing or twice, no update counts twice, and the run ends well."""
    made = running
    wait_until(lambda: rounds(made) >= 1, made, "no first round")
    kill_in_mid_round(made, "training process", lambda: next(p for n in range(3) for p in training(made, n)))
    kill_in_mid_round(made, "SuperNode", lambda: descendant(made, "client-1", "deploy.node"))
    kill_in_mid_round(made, "SuperLink", lambda: descendant(made, "server", "deploy.superlink"))
    kill_in_mid_round(made, "ServerApp", lambda: descendant(made, "server", "flwr-serverapp"))
    wait_until(lambda: any(training(made, number) for number in range(3)), made, "nobody trains")
    made.processes["server"].kill()
    made.processes["server"].wait()
    began = time.monotonic()
    done = rounds(made)
    made.start_server(f"resume={made.run_dir}", "report=false")
    wait_until(lambda: rounds(made) > done, made, "no round after the launcher")
    print(f"launcher, resumed by hand: the round's end {time.monotonic() - began:.1f} s after that")
    assert made.wait_until_done(300) == 0, made.everything()
    assert [row["round"] for row in rows(made, "rounds.jsonl")] == list(range(1, ROUNDS + 1))
    clients = [(row["round"], row["client_id"]) for row in rows(made, "clients.jsonl")]
    assert len(clients) == len(set(clients))
    assert json.loads((made.run_dir / "summary.json").read_text())["status"] == "finished"
    lost = [row for row in rows(made, "clients.jsonl") if row["outcome"] != "ok"]
    assert {row["outcome"] for row in lost} <= {"lost", "error"}
    assert all(row["detail"] for row in lost)
