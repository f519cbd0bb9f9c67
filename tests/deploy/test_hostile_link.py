"""Every hostile reply of the table through Flower's own handlers and database, without its sockets.

``test_hostile_wire.py`` sends them from registered devices to a whole server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_grid import FakeGrid, honest_train, small_global, trained
from flwr.app import ConfigRecord, Message
from hostile import CASES, MAX_BYTES, Case
from light_nodes import Parcel
from local_link import LocalLink
from wire_forgeries import UNSENDABLE, carried

from fedpeft.core import wire
from fedpeft.core.events import ClientRejected, Event
from fedpeft.core.guard import UpdateGuard
from fedpeft.core.tensors import weighted_mean
from fedpeft.engines.deploy.arriving_grid import ArrivingGrid
from fedpeft.engines.flower_private import set_identity
from fedpeft.strategies.fedavg import FedAvg

CLIENTS, OFFENDER = 4, 2
YOUNG_S = 10.0


def parcels(case: Case, message: Message) -> list[Parcel]:
    return [Parcel.of(one) for one in case.make(message, honest_train(OFFENDER, message))]


@dataclass(kw_only=True)
class Ends:
    """Both ends of a link, and when they were made."""

    link: LocalLink
    grid: ArrivingGrid
    made_s: float


@pytest.fixture(scope="module")
def kept() -> list[Ends]:
    return []


@pytest.fixture
def ends(kept: list[Ends], tmp_path: Path) -> Ends:
    """The case before's, while they are young: Flower ends a run that has not said for a minute that it lives."""
    if not kept or time.monotonic() - kept[-1].made_s > YOUNG_S:
        link = LocalLink(tmp_path, CLIENTS)
        grid = ArrivingGrid(link.grid, max_bytes=MAX_BYTES)
        kept.append(Ends(link=link, grid=grid, made_s=time.monotonic()))
    return kept[-1]


@pytest.mark.parametrize("case", [one for one in CASES if one.name not in UNSENDABLE], ids=lambda case: case.name)
def test_its_sender_is_named_and_the_honest_mean_is_the_model(case: Case, ends: Ends) -> None:
    link, grid = ends.link, ends.grid
    events: list[Event] = []
    strategy = FedAvg(cohort_size=CLIENTS, guard=UpdateGuard(max_bytes=MAX_BYTES))
    strategy.identity = wire.Identity(run_id="run", config_hash="config", model_hash="model")
    strategy.observers = (events.append,)
    clients = FakeGrid({node: number for number, node in enumerate(link.nodes)})
    set_identity(run_id=link.run_id, node_id=1)
    ids = list(
        grid.push_messages(list(strategy.configure_train(1, wire.encode(small_global()), ConfigRecord(), clients)))
    )
    sent = None
    for number, node in enumerate(link.nodes):
        message = link.receive(node)
        if number != OFFENDER:
            link.reply(node, Parcel.of(Message(honest_train(number, message), reply_to=message)))
            continue
        for one in parcels(case, message)[:1]:
            sent = one.message
            link.reply(node, one)
    replies = list(grid.pull_messages(ids))

    arrays, _ = strategy.aggregate_train(1, replies)

    outcome, weight = carried(case)
    tensors = {number: trained(number, small_global()) for number in range(CLIENTS) if number != OFFENDER}
    weights = {number: 10 + number for number in tensors}
    if outcome == "ok":
        assert sent is not None
        tensors[OFFENDER] = wire.decode_own(sent.content.array_records[wire.ARRAYS])
        weights[OFFENDER] = 10 + OFFENDER if weight is None else weight
    kept = sorted(tensors)
    expected = weighted_mean([tensors[number] for number in kept], [weights[number] for number in kept])
    assert arrays is not None
    got = wire.decode_own(arrays)
    assert {key: value.tobytes() for key, value in got.items()} == {k: v.tobytes() for k, v in expected.items()}
    rejected = [(one.client_id, f"rejected:{one.check}") for one in events if isinstance(one, ClientRejected)]
    assert rejected == ([(OFFENDER, outcome)] if outcome.startswith("rejected:") else [])
    failed = [reply.metadata.src_node_id for reply in replies if reply.has_error()]
    assert failed == ([link.nodes[OFFENDER]] if outcome == "error" else [])


@pytest.mark.parametrize("name", sorted(UNSENDABLE))
def test_what_no_wire_carries(name: str) -> None:
    case = next(one for one in CASES if one.name == name)
    asked = wire.instruction(wire.encode(small_global()), 1, wire.Identity(run_id="r", config_hash="c", model_hash="m"))
    message = Message(asked, dst_node_id=1, message_type="train")
    with pytest.raises((TypeError, ValueError)):
        parcels(case, message)
