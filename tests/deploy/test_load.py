"""A hundred devices that answer at once, for twenty rounds, at a real server.

    python -m pytest -m slow tests/deploy/test_load.py -s

prints what each round took, and what the SuperLink and its database had grown to.
"""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
import toy as maker
from light_nodes import register, running
from real_federation import Federation, free_port, smaller

from fedpeft.engines.deploy.certificates import ensure_certificates
from fedpeft.engines.deploy.control import Control
from fedpeft.engines.deploy.keys import make_device_key
from fedpeft.engines.deploy.processes import OBJECTS, ServerProcesses
from fedpeft.engines.deploy.superlink import admin_secret

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CLIENTS, ROUNDS, EARLY = 100, 20, 5
BUSY_S = 8.0
MIB = 2**20


def superlink(made: Federation) -> psutil.Process:
    children = psutil.Process(made.processes["server"].pid).children(recursive=True)
    return next(one for one in children if "deploy.superlink" in " ".join(one.cmdline()))


def measured(made: Federation) -> dict[str, float]:
    """Return the MiB of the SuperLink and of its database, and how many rows that holds of messages."""
    files = made.state.glob("flower.db*")
    with sqlite3.connect(f"file:{made.state / 'flower.db'}?mode=ro", uri=True) as database:
        rows = sum(
            database.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("objects", "object_children", "run_objects", "message_ins", "message_res", "task_logs")
        )
    return {
        "memory_mb": superlink(made).memory_info().rss / MIB,
        "database_mb": sum(path.stat().st_size for path in files) / MIB,
        "rows": rows,
    }


def rows(made: Federation, name: str) -> list[dict[str, Any]]:
    path = made.run_dir / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def follow(made: Federation) -> dict[int, dict[str, float]]:
    """Return what was measured after each round, until the last."""
    found: dict[int, dict[str, float]] = {}
    while len(found) < ROUNDS and made.processes["server"].poll() is None:
        if len(done := rows(made, "rounds.jsonl")) > len(found):
            found[len(done)] = measured(made)
            print(f"round {len(done)}: {done[-1]['wall_s']:.1f} s,", json.dumps(found[len(done)]), flush=True)
        time.sleep(0.1)
    return found


def test_nothing_is_lost_and_nothing_grows(tmp_path: Path) -> None:
    model = maker.write_model(tmp_path / "model", hidden=4, layers=1)
    kept = smaller(maker.overrides(model, maker.write_data(tmp_path / "data", rows=20 * CLIENTS)), CLIENTS)
    kept = [one for one in kept if not one.startswith(("method.", "rounds="))]
    overrides = [*kept, "method=prompt", "method.num_virtual_tokens=1", "head=freeze", f"rounds={ROUNDS}"]
    made = Federation(folder=tmp_path, files=[], overrides=overrides)
    made.state.mkdir()
    keys = register(made.state, CLIENTS)
    made.start_server("report=false")
    try:
        made.wait_for("server", "starting Flower's SuperLink")
        with running(keys, made.address, made.state / "ca.crt", workers=4, idle_s=3.0) as nodes:
            found = follow(made)
            assert made.wait_until_done(120) == 0, made.everything()
    finally:
        made.end()
    clients = rows(made, "clients.jsonl")
    assert {(row["round"], row["client_id"]) for row in clients} == {
        (number, client) for number in range(1, ROUNDS + 1) for client in range(CLIENTS)
    }
    assert {row["outcome"] for row in clients} == {"ok"}
    assert sum(node.refused for node in nodes) == 0
    early, last = found[EARLY], found[max(found)]
    assert last["memory_mb"] < 1.1 * early["memory_mb"] + 10
    assert last["database_mb"] < 1.1 * early["database_mb"] + 1
    assert last["rows"] <= early["rows"] + CLIENTS


def test_a_busy_database_is_waited_for(tmp_path: Path) -> None:
    """Flower's SuperLink refuses a request after five seconds, and the device drops its message."""
    certificates = ensure_certificates(tmp_path, ["127.0.0.1"])
    admin_secret(tmp_path)
    key = make_device_key(tmp_path / "d.key", name="d", client_id=0)
    server = ServerProcesses(address=f"127.0.0.1:{free_port()}", certificates=certificates, state_dir=tmp_path)
    with server, Control(server.local_address, certificates.ca) as control:
        other = sqlite3.connect(tmp_path / OBJECTS, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        Timer(BUSY_S, other.rollback).start()
        began = time.monotonic()
        assert control.register(key)
        assert time.monotonic() - began > BUSY_S - 1
        other.close()
