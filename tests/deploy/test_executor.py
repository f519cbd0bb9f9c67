"""A device's two processes against a real SuperLink: a child answers at a time, and its death is told."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from light_federation import Federation, federation

from fedpeft.engines.deploy.executor import ForkingExecutor
from fedpeft.engines.deploy.node import Node, NodeSettings, free_port
from fedpeft.engines.deploy.resident import ResidentExecutor
from fedpeft.engines.flower_private_device import run_superexec


class Enough(Exception):
    """The test has seen what it wanted."""


def make_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        server_round = int(message.content["config"]["server-round"])
        if context.run_config["fedpeft-config"] == '{"die": 1}' and server_round == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if context.run_config["fedpeft-config"] == '{"memory": 1}' and server_round == 1:
            raise MemoryError
        if context.run_config["fedpeft-config"] == '{"idle": 1}' and server_round == 1:
            threading.Timer(0.3, os._exit, (1,)).start()
        if context.run_config["fedpeft-config"] == '{"hang": 1}' and server_round == 1:
            time.sleep(3600)
        seen = int(context.state["seen"]["count"]) + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"count": seen})
        facts = {"pid": os.getpid(), "threads": threading.active_count(), "seen": seen}
        return Message(RecordDict({"metrics": MetricRecord(facts)}), reply_to=message)

    return app


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "device"))
    with federation(tmp_path, free_port()) as made:
        yield made


def serve(
    server: Federation, rows: int, kind: type[ForkingExecutor] = ForkingExecutor, **settings: Any
) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """Be a device until the server has so many rows; return what happened, the configs warmed for, the children."""
    secret = server.folder / "secret"
    secret.write_bytes(os.urandom(32))
    node = Node(
        NodeSettings(
            server=server.address,
            ca=None,
            key=None,
            secret=secret,
            config={},
            log=server.folder / "node.log",
            link=server.folder / "link.json",
        )
    )
    happened: list[dict[str, Any]] = []
    warmed: list[str] = []
    pids: list[int] = []

    def between() -> None:
        pids.extend(pid for pid in executor.pids if pid not in pids)
        if len(server.rows()) >= rows:
            raise Enough

    executor = kind(make_app=make_app, warm=warmed.append, tell=happened.append, between=between, **settings)
    try:
        while not (said := node.events()):
            assert node.ended() is None, server.logs()
            time.sleep(0.02)
        assert said[0]["kind"] == "connected"
        with pytest.raises(Enough):
            run_superexec(executor, address=node.address, secret=secret.read_bytes(), poll_s=0.1)
    finally:
        executor.end()
        node.stop()
    return happened, warmed, pids


def test_each_message_gets_a_fork_and_the_servers_code_never_runs(server: Federation) -> None:
    server.submit(rounds=3, config={"a": 1})
    happened, warmed, pids = serve(server, 3)
    rows = server.rows()
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert [row["seen"] for row in rows] == [1, 2, 3], "Flower's context goes from fork to fork"
    assert len({row["pid"] for row in rows}) == 3 and os.getpid() not in pids
    assert {int(row["pid"]) for row in rows} <= set(pids)
    assert warmed == ['{"a": 1}'], "once a config, in the parent"
    assert [event["kind"] for event in happened][:4] == ["began", "done", "warm", "began"]
    assert [event["round"] for event in happened if event["kind"] == "began"] == [1, 2, 3]
    assert 0 < json.loads((server.folder / "link.json").read_text())["down_s"] < 5
    assert not server.mark.exists()
    assert not list((server.folder / "device").rglob("client.py")), "the FAB was not even unpacked"
    assert max(row["seconds"] for row in rows[1:]) < 10, "a Python for each message takes 10 to 20"


def test_a_child_that_stays_answers_all_messages(server: Federation) -> None:
    server.submit(rounds=4, config={"a": 1})
    happened, warmed, pids = serve(server, 4, ResidentExecutor)
    rows = server.rows()
    assert [row["seen"] for row in rows] == [1, 2, 3, 4], "Flower's context goes from message to message"
    assert {int(row["pid"]) for row in rows} == set(pids) and len(pids) == 1
    assert os.getpid() not in pids and not psutil.pid_exists(pids[0]), "it ends with its executor"
    assert len({row["threads"] for row in rows}) == 1, "none is left of a message before"
    assert warmed == []
    assert [event["kind"] for event in happened] == ["began", "done"] * 4
    assert not list((server.folder / "device").rglob("client.py")), "the FAB was not even unpacked"


def test_a_child_that_dies_between_two_messages_is_replaced(server: Federation) -> None:
    server.submit(rounds=2, config={"idle": 1}, pause_s=1.0)
    _, _, pids = serve(server, 2, ResidentExecutor)
    assert [row["seen"] for row in server.rows()] == [1, 2] and len(set(pids)) == 2


@pytest.mark.parametrize("kind", [ForkingExecutor, ResidentExecutor])
@pytest.mark.parametrize(
    ("config", "said", "code", "settings"),
    [
        ({"die": 1}, "SIGKILL", 8, {}),
        ({"memory": 1}, "out of memory", 2, {}),
        # Long enough for the honest second answer on a machine that has other work.
        ({"hang": 1}, "longer than 5 seconds", 8, {"patience_s": 5}),
    ],
)
def test_what_ends_a_child_is_told_at_once_and_the_next_round_goes_on(
    server: Federation,
    kind: type[ForkingExecutor],
    config: dict[str, int],
    said: str,
    code: int,
    settings: dict[str, float],
) -> None:
    server.submit(rounds=2, config=config)
    happened, warmed, pids = serve(server, 2, kind, **settings)
    first, second = server.rows()
    assert said in first["reason"] and first["code"] == code
    assert first["seconds"] < 30, "Flower itself takes 70 seconds to notice"
    assert second["seen"] == 1
    assert len(warmed) == (kind is ForkingExecutor)
    assert second["pid"] != pids[0], "whatever went wrong, the next message begins afresh"
    assert any(said in event.get("reason", "") for event in happened)
