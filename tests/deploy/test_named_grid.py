"""A node is the client that its key is registered for, whatever it says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from fake_grid import FakeGrid
from flwr.app import Error, Message

from fedpeft.core import wire
from fedpeft.engines.deploy.named_grid import NamedGrid
from fedpeft.strategies.roster import Roster


def registered(path: Path, nodes: dict[int, int]) -> Path:
    path.write_text(json.dumps({str(node): client for node, client in nodes.items()}))
    return path


def claiming(client_id: int, num_examples: int = 5) -> Message | object:
    def hello(message: Message) -> Message:
        content = wire.hello_reply(client_id=client_id, num_examples=num_examples, device="board", rank=2)
        return Message(content, reply_to=message)

    return hello


def test_who_says_the_truth_is_known(tmp_path: Path) -> None:
    nodes = {40: 0, 50: 2}
    grid = NamedGrid(FakeGrid(nodes), registered(tmp_path / "nodes.json", nodes))
    assert [client.client_id for client in Roster().refresh(grid)] == [0, 2]


def test_who_claims_anothers_number_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even where the other one is not there to contest it."""
    inner = FakeGrid({40: 0}, hello=claiming(7))  # type: ignore[arg-type]
    grid = NamedGrid(inner, registered(tmp_path / "nodes.json", {40: 0}))
    with caplog.at_level(logging.WARNING):
        assert Roster().refresh(grid) == []
    assert "says it is client 7, but its key is registered for client 0" in caplog.text


def test_a_refusal_names_the_device(tmp_path: Path) -> None:
    def refuses(message: Message) -> Message:
        return Message(Error(2, "ConfigError: too many steps"), reply_to=message)

    inner = FakeGrid({40: 3}, hello=refuses)
    roster = Roster()
    assert roster.refresh(NamedGrid(inner, registered(tmp_path / "nodes.json", {40: 3}))) == []
    assert roster.left_out == {40: "client 3: ConfigError: too many steps"}


def test_nodes_without_a_registered_key_are_not_asked(tmp_path: Path) -> None:
    inner = FakeGrid({40: 0, 99: 1})
    grid = NamedGrid(inner, registered(tmp_path / "nodes.json", {40: 0}))
    assert list(grid.get_node_ids()) == [40]
    registered(tmp_path / "nodes.json", {40: 0, 99: 1})
    assert sorted(grid.get_node_ids()) == [40, 99]


def test_a_broken_hello_stays_the_rosters_to_judge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = FakeGrid({40: 0}, hello=claiming(0, num_examples=0))  # type: ignore[arg-type]
    grid = NamedGrid(inner, registered(tmp_path / "nodes.json", {40: 0}))
    with caplog.at_level(logging.WARNING):
        assert Roster().refresh(grid) == []
    assert "out of range" in caplog.text
