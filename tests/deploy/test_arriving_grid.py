"""A grid that waits for nobody, on Flower's own database and handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import honest_train, small_global
from flwr.app import Message
from flwr.common.constant import ErrorCode
from light_nodes import Parcel
from local_link import LocalLink
from wire_forgeries import WIRE_CASES, WireCase

from fedpeft.core import wire
from fedpeft.engines.deploy import arriving_grid
from fedpeft.engines.deploy.arriving_grid import ERROR_UNAVAILABLE, ERROR_UNREADABLE, ArrivingGrid
from fedpeft.engines.flower_private_server import CHUNK_BYTES, fit_chunks

IDENTITY = wire.Identity(run_id="run", config_hash="config", model_hash="model")
MAX_BYTES = 100_000


@pytest.fixture
def link(tmp_path: Path) -> LocalLink:
    return LocalLink(tmp_path, nodes=3)


@pytest.fixture
def grid(link: LocalLink) -> ArrivingGrid:
    return ArrivingGrid(link.grid, max_bytes=MAX_BYTES)


def ask(link: LocalLink, grid: ArrivingGrid, server_round: int = 1) -> list[str]:
    content = wire.instruction(wire.encode(small_global()), server_round, IDENTITY)
    return list(grid.push_messages([Message(content, dst_node_id=n, message_type="train") for n in link.nodes]))


def answered(link: LocalLink, node: int, message: Message) -> Parcel:
    return Parcel.of(Message(honest_train(link.nodes.index(node), message), reply_to=message))


def reply_all(link: LocalLink, nodes: list[int]) -> None:
    for node in nodes:
        link.reply(node, answered(link, node, link.receive(node)))


def test_replies_come_as_they_were_sent(link: LocalLink, grid: ArrivingGrid) -> None:
    ids = ask(link, grid)
    parcels = [answered(link, node, link.receive(node)) for node in link.nodes]
    assert list(grid.pull_messages(ids)) == []
    for node, parcel in zip(link.nodes, parcels, strict=True):
        link.reply(node, parcel)
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
    assert set(replies) == set(ids)
    for node, message_id, parcel in zip(link.nodes, ids, parcels, strict=True):
        reply = replies[message_id]
        assert (reply.metadata.src_node_id, reply.metadata.message_id) == (node, parcel.message.metadata.message_id)
        got = wire.decode_own(reply.content.array_records[wire.ARRAYS])
        sent = wire.decode_own(parcel.message.content.array_records[wire.ARRAYS])
        assert all(np.array_equal(got[key], sent[key]) for key in sent)


def test_an_upload_that_is_under_way_holds_up_nobody(link: LocalLink, grid: ArrivingGrid) -> None:
    ids = ask(link, grid)
    slow, *others = link.nodes
    parcel = answered(link, slow, link.receive(slow))
    begun = link.announce(slow, parcel)
    reply_all(link, others)
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in replies] == others
    # Asked for again and again meanwhile, as a server does.
    assert list(grid.pull_messages(ids[:1])) == []
    assert all(link.upload(slow, parcel, begun))
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids[:1])] == [slow]


def test_rounds_leave_nothing_behind(link: LocalLink, grid: ArrivingGrid) -> None:
    for server_round in range(1, 4):
        ids = ask(link, grid, server_round)
        reply_all(link, link.nodes)
        assert len(list(grid.pull_messages(ids))) == 3
        assert link.kept() == 0


def test_what_was_given_up_is_dropped_wherever_it_stands(link: LocalLink, grid: ArrivingGrid) -> None:
    """Not fetched, being worked on, being sent: the next round finds three free devices, and nothing is kept."""
    before = ask(link, grid, 1)
    idle, working, sending = link.nodes
    worked_on, sent = link.receive(working), link.receive(sending)
    parcel = answered(link, sending, sent)
    begun = link.announce(sending, parcel)
    assert list(grid.pull_messages(before)) == []

    ids = ask(link, grid, 2)
    assert link.named(idle) is None, "the round before is over"
    assert not any(link.upload(sending, parcel, begun)), "nobody waits for that"
    late = answered(link, working, worked_on)
    link.reply(working, late)
    for node in link.nodes:
        message = link.receive(node)
        assert wire.round_of(message.content) == 2
        link.reply(node, answered(link, node, message))
    replies = list(grid.pull_messages(ids))
    assert sorted(reply.metadata.src_node_id for reply in replies) == sorted(link.nodes)
    assert {wire.round_of(reply.content) for reply in replies} == {2}
    assert link.kept() == 0


def test_nothing_is_kept_for_a_device_that_is_gone(link: LocalLink, grid: ArrivingGrid) -> None:
    ids = ask(link, grid)
    gone, *others = link.nodes
    reply_all(link, others)
    assert link.state.deactivate_node(gone)
    errors = [reply.error.code for reply in grid.pull_messages(ids) if reply.has_error()]
    assert errors == [ErrorCode.NODE_UNAVAILABLE]
    assert link.kept() == 0


def test_a_download_of_a_round_that_is_over_ends(link: LocalLink, grid: ArrivingGrid) -> None:
    ask(link, grid, 1)
    node = link.nodes[0]
    assert link.named(node) is not None
    object_id = link.tree.object_id
    ask(link, grid, 2)
    assert link.state.get_object(link.run_id, object_id) is None


def test_an_upload_that_broke_off_is_an_error(
    link: LocalLink, grid: ArrivingGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.supercore.corestate import sql_corestate

    ids = ask(link, grid)
    node = link.nodes[0]
    monkeypatch.setattr(sql_corestate, "OBJECT_PUSH_SESSION_TTL_SECONDS", -1)
    link.announce(node, answered(link, node, link.receive(node)))
    [reply] = grid.pull_messages(ids[:1])
    assert (reply.error.code, reply.error.reason) == (ERROR_UNAVAILABLE, "its upload broke off")
    assert reply.metadata.reply_to_message_id == ids[0]


@pytest.mark.parametrize("case", [case for case in WIRE_CASES if case.outcome in ("error", "ok")], ids=lambda c: c.name)
def test_what_makes_no_message_is_an_error_of_its_sender(case: WireCase, link: LocalLink, grid: ArrivingGrid) -> None:
    ids = ask(link, grid)
    node = link.nodes[0]
    message = link.receive(node)
    link.reply(node, case.make(message, honest_train(0, message)))
    [reply] = grid.pull_messages(ids)
    metadata = reply.metadata
    assert (metadata.src_node_id, metadata.reply_to_message_id, metadata.message_type) == (node, ids[0], "train")
    assert reply.has_error() == (case.outcome == "error")
    if reply.has_error():
        assert reply.error.code == ERROR_UNREADABLE
        assert reply.error.reason and "cannot be read" in reply.error.reason and len(reply.error.reason) < 400


def test_more_bytes_than_are_taken_are_not_taken(
    link: LocalLink, grid: ArrivingGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_grid, "SLACK_BYTES", 0)
    grid = ArrivingGrid(link.grid, max_bytes=400)
    ids = ask(link, grid)
    reply_all(link, link.nodes[:1])
    [reply] = grid.pull_messages(ids)
    assert reply.has_error() and reply.error.reason and "guard.max_bytes" in reply.error.reason


def test_a_device_that_has_it_before_it_is_there_harms_itself_only(link: LocalLink, grid: ArrivingGrid) -> None:
    """It says that it has received what is still being sent: the SuperLink forgets that, and the rest goes on."""
    hasty = link.nodes[0]
    client: Any = link.grid._client
    push = client.PushMessages

    def confirm_at_once(request: Any) -> Any:
        answer = push(request)
        link.confirm(hasty, answer.message_ids[0])
        return answer

    client.PushMessages = confirm_at_once
    ids = ask(link, grid)
    reply_all(link, link.nodes[1:])
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids)] == link.nodes[1:]


def test_a_lost_message_is_told_as_flower_tells_it(link: LocalLink, grid: ArrivingGrid) -> None:
    [reply] = grid.pull_messages(["0" * 64])
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert reply.metadata.reply_to_message_id == "0" * 64


def test_arrays_are_cut_so_that_a_slow_link_carries_a_piece_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.app import Array
    from flwr.app.message import array

    monkeypatch.setattr(array, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)
    fit_chunks()
    pieces: list[Any] = [one for _, one in Array(np.arange(2**19, dtype=np.float32)).slice_array()]
    assert [len(one.data) for one in pieces][:-1] == [CHUNK_BYTES] * 16
    # Two pieces at a time over 0.25 Mbit/s, well within the 30 seconds that Flower's client waits for an answer.
    assert 2 * 8 * CHUNK_BYTES / 0.25e6 < 10
