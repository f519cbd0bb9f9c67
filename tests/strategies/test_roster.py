"""Who the clients are: asked once, twins refused, newcomers learned later."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import ClassVar

import pytest
from fake_grid import FakeGrid, honest, small_global
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.core import wire
from fedpeft.core.events import ClientLeftOut, Event
from fedpeft.core.types import ClientInfo
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.roster import Roster

NODES = {50: 2, 40: 0, 60: 1}


def ids(roster: Roster, grid: FakeGrid) -> list[int]:
    return [client.client_id for client in roster.refresh(grid)]


def test_clients_come_by_client_id_and_are_asked_once() -> None:
    grid, roster = FakeGrid(NODES), Roster()
    clients = roster.refresh(grid)
    assert [(c.client_id, c.node_id, c.num_examples, c.device, c.rank) for c in clients] == [
        (0, 40, 10, "board", 2), (1, 60, 11, "board", 2), (2, 50, 12, "board", 2),
    ]  # fmt: skip
    assert roster.refresh(grid) == clients
    assert [message.metadata.message_type for message in grid.asked] == ["query.hello"] * 3
    assert roster.get(40) == clients[0]
    assert roster.get(41) is None


def test_new_nodes_are_learned_and_gone_ones_left_out() -> None:
    grid, roster = FakeGrid({50: 2, 40: 0}), Roster()
    assert ids(roster, grid) == [0, 2]
    grid.clients = {40: 0, 60: 1, 70: 3}
    assert ids(roster, grid) == [0, 1, 3]
    assert [m.metadata.dst_node_id for m in grid.asked] == [40, 50, 60, 70]
    grid.clients = {50: 2}
    assert ids(roster, grid) == [2]


class Failing(FakeGrid):
    """Some nodes answer with an error of some code."""

    failing: ClassVar[dict[int, int]] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        batch = list(messages)
        good = super().send_and_receive([m for m in batch if m.metadata.dst_node_id not in self.failing])
        bad = [m for m in batch if m.metadata.dst_node_id in self.failing]
        self.asked += bad
        return [*good, *(Message(Error(self.failing[m.metadata.dst_node_id], "why"), reply_to=m) for m in bad)]


@pytest.mark.parametrize(("code", "asked_again"), [(2, False), (5, True), (8, True)])
def test_a_node_that_was_lost_over_the_question_is_asked_again(code: int, asked_again: bool) -> None:
    """One that refuses is not: each round would wait for it."""
    grid, roster = Failing(NODES), Roster()
    grid.failing = {60: code}
    assert ids(roster, grid) == [0, 2]
    grid.failing = {}
    assert ids(roster, grid) == ([0, 1, 2] if asked_again else [0, 2])


def test_a_refused_node_that_was_away_is_asked_again() -> None:
    grid, roster = Failing(NODES), Roster()
    grid.failing = {60: 2}
    assert ids(roster, grid) == [0, 2]
    grid.failing = {}
    grid.clients = {50: 2, 40: 0}
    assert ids(roster, grid) == [0, 2]
    grid.clients = NODES
    assert ids(roster, grid) == [0, 1, 2]


@pytest.mark.parametrize("claimants", [2, 3, 4])
def test_all_who_claim_one_client_id_are_left_out(claimants: int, caplog: pytest.LogCaptureFixture) -> None:
    grid, roster = FakeGrid({**NODES, **{100 + i: 0 for i in range(claimants - 1)}}), Roster()
    with caplog.at_level(logging.WARNING):
        assert ids(roster, grid) == [1, 2]
        assert ids(roster, grid) == [1, 2]
    assert len([record for record in caplog.records if "client 0" in record.message]) == claimants - 1


def test_a_late_twin_drops_both_and_a_later_one_does_not_pass() -> None:
    grid, roster = FakeGrid(NODES), Roster()
    assert ids(roster, grid) == [0, 1, 2]
    grid.clients[99] = 0
    assert ids(roster, grid) == [1, 2]
    del grid.clients[99], grid.clients[40]
    grid.clients[98] = 0
    assert ids(roster, grid) == [1, 2]


@pytest.mark.parametrize("answer", ["error", "empty", "out of range"])
def test_nodes_that_do_not_say_who_they_are_are_left_out(answer: str, caplog: pytest.LogCaptureFixture) -> None:
    def hello(message: Message) -> Message:
        if message.metadata.dst_node_id != 60:
            return grid.say_hello(message)
        if answer == "error":
            return Message(Error(2, "no"), reply_to=message)
        content = (
            RecordDict() if answer == "empty" else wire.hello_reply(client_id=-1, num_examples=1, device="d", rank=None)
        )
        return Message(content, reply_to=message)

    grid, roster = FakeGrid(NODES), Roster()
    grid.hello = hello
    told: list[Event] = []
    roster.observers = (told.append,)
    assert ids(roster, grid) == [0, 2]
    assert "node 60 is left out" in caplog.text
    [event] = told
    assert isinstance(event, ClientLeftOut) and event.reason.startswith("node 60: ")
    assert roster.left_out == {60: event.reason}
    assert ids(roster, grid) == [0, 2]
    assert len(grid.asked) == 3


def test_a_node_that_stays_silent_is_left_out_and_waited_for_once(caplog: pytest.LogCaptureFixture) -> None:
    class Patient(FakeGrid):
        """Answers for all nodes but one; notes how long it was told to wait."""

        waits: ClassVar[list[float | None]] = []

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            self.waits.append(timeout)
            return [r for r in super().send_and_receive(messages) if r.metadata.src_node_id != 60]

    grid, roster = Patient(NODES), Roster()
    assert [client.client_id for client in roster.refresh(grid, timeout=5.0)] == [0, 2]
    assert [client.client_id for client in roster.refresh(grid, timeout=5.0)] == [0, 2]
    assert grid.waits == [5.0]
    assert "node 60 is left out: it did not say who it is" in caplog.text


def test_a_strategy_waits_for_newcomers_no_longer_than_for_replies() -> None:
    waits: list[float | None] = []

    class Noting(Roster):
        def refresh(self, grid: Grid, timeout: float | None = None) -> list[ClientInfo]:
            waits.append(timeout)
            return super().refresh(grid, timeout)

    strategy = FedAvg(cohort_size=3, evaluate_every=1)
    strategy.roster = Noting()
    strategy.start(FakeGrid(NODES, honest), wire.encode(small_global()), num_rounds=1, timeout=7.0)
    assert waits == [7.0, 7.0]
