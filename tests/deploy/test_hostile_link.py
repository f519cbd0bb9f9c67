"""Every hostile reply of the table through Flower's own handlers and database, without its sockets.

``test_hostile_wire.py`` sends them from registered devices to a whole server.
"""

from __future__ import annotations

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


def parcels(case: Case, message: Message) -> list[Parcel]:
    return [Parcel.of(one) for one in case.make(message, honest_train(OFFENDER, message))]


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> LocalLink:
    return LocalLink(tmp_path_factory.mktemp("link"), CLIENTS)


@pytest.fixture(scope="module")
def grid(link: LocalLink) -> ArrivingGrid:
    return ArrivingGrid(link.grid, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("case", [one for one in CASES if one.name not in UNSENDABLE], ids=lambda case: case.name)
def test_its_sender_is_named_and_the_honest_mean_is_the_model(case: Case, link: LocalLink, grid: ArrivingGrid) -> None:
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
