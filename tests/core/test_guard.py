"""The guard's own rules: caps, medians, and a verdict that does not depend on the order of replies."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from fake_grid import RUN_ID
from flwr.app import Error, Message, RecordDict

from fedpeft.core import wire
from fedpeft.core.errors import WireError
from fedpeft.core.guard import Expectation, UpdateGuard, Verdict, check_aggregate
from fedpeft.core.types import ClientInfo
from fedpeft.engines.flower_private import set_identity

SENT = {"x": np.zeros(4, np.float32)}
INSTRUCTION = wire.Instruction(tensors=SENT, server_round=2, identity=wire.Identity(), config={})


def expectation(client_id: int, node_id: int) -> Expectation:
    client = ClientInfo(client_id=client_id, node_id=node_id, num_examples=1)
    return Expectation(client=client, server_round=2, identity=wire.Identity(), sent=SENT)


def message(node_id: int, length: float, num_examples: int = 1) -> Message:
    """A reply whose change has the given L2 norm: four equal coordinates of half of it."""
    set_identity(run_id=RUN_ID, node_id=1)
    asked = Message(RecordDict(), dst_node_id=node_id, message_type="train")
    content = wire.reply(INSTRUCTION, {"x": np.full(4, length / 2, np.float32)}, {"num-examples": num_examples})
    return Message(content, reply_to=asked)


def judge(lengths: list[float], **settings: float) -> Verdict:
    """Clients 0, 1 ... on nodes 100, 99 ... change by these lengths."""
    replies = [message(100 - i, length) for i, length in enumerate(lengths)]
    return UpdateGuard(**settings).inspect(replies, {100 - i: expectation(i, 100 - i) for i in range(len(lengths))})  # type: ignore[arg-type]


def dropped(verdict: Verdict) -> dict[int | None, str]:
    return {r.client_id: r.check for r in verdict.rejected}


def test_updates_are_accepted_by_client_id() -> None:
    verdict = judge([1.0, 1.0, 1.0])
    assert [u.client.client_id for u in verdict.accepted] == [0, 1, 2]
    assert verdict.rejected == []


def test_absolute_norm_cap_is_inclusive() -> None:
    """Halves of 8 and 8.5 are exact, so the norms are 8 and 8.5."""
    assert dropped(judge([8.0, 8.5], max_norm=8.0)) == {1: "norm"}


def test_median_cap_by_hand() -> None:
    """Norms 1, 1, 2, 2, 16: median 2, cap 4 x 2 = 8, so 16 goes. With 8 for 16 nothing goes: 8 is not over 8."""
    assert dropped(judge([1.0, 1.0, 2.0, 2.0, 16.0], norm_factor=4.0)) == {4: "norm"}
    assert dropped(judge([1.0, 1.0, 2.0, 2.0, 8.0], norm_factor=4.0)) == {}


def test_the_norm_is_that_of_the_change() -> None:
    """What was sent has norm 1000. A reply equal to it changes nothing; zeros, which have norm 0, change it by 1000."""
    sent = {"x": np.full(4, 500, np.float32)}
    expected = {7: replace(expectation(0, 7), sent=sent)}
    assert dropped(UpdateGuard(max_norm=8.0).inspect([message(7, 1000.0)], expected)) == {}
    assert dropped(UpdateGuard(max_norm=8.0).inspect([message(7, 0.0)], expected)) == {0: "norm"}


def test_three_replies_have_no_median() -> None:
    assert dropped(judge([1.0, 1.0, 900.0])) == {}
    assert dropped(judge([1.0, 1.0, 1.0, 900.0])) == {3: "norm"}


def test_a_still_majority_drops_nobody() -> None:
    """Median 0 would make any change an outlier."""
    assert dropped(judge([0.0, 0.0, 0.0, 5.0])) == {}


def test_refused_replies_do_not_move_the_median() -> None:
    verdict = judge([1.0, 1.0, 1.0, 1.0, 15.0, 2000.0, 2000.0, 2000.0])
    assert dropped(verdict) == {4: "norm", 5: "norm", 6: "norm", 7: "norm"}


@pytest.mark.parametrize(("num_examples", "ok"), [(0, False), (1, True), (50, True), (51, False)])
def test_weight_cap_is_inclusive(num_examples: int, ok: bool) -> None:
    verdict = UpdateGuard(max_examples=50).inspect([message(7, 1.0, num_examples)], {7: expectation(0, 7)})
    assert dropped(verdict) == ({} if ok else {0: "weight"})
    assert [u.num_examples for u in verdict.accepted] == ([num_examples] if ok else [])


def test_verdict_does_not_depend_on_the_order() -> None:
    replies = [message(1, 1.0), message(2, 1.0), message(2, 2.0), message(3, 5000.0), message(9, 1.0)]
    expected = {node: expectation(node, node) for node in (1, 2, 3)}
    verdicts = [UpdateGuard().inspect(order, expected) for order in itertools.permutations(replies)]
    first = [(r.client_id, r.node_id, r.check, r.reason) for r in verdicts[0].rejected]
    assert [(client, check) for client, _, check, _ in first] == [(2, "duplicate"), (3, "norm"), (None, "node")]
    for verdict in verdicts:
        assert [u.client.client_id for u in verdict.accepted] == [1]
        assert [(r.client_id, r.node_id, r.check, r.reason) for r in verdict.rejected] == first


def test_error_replies_are_passed_over() -> None:
    set_identity(run_id=RUN_ID, node_id=1)
    asked = Message(RecordDict(), dst_node_id=5, message_type="train")
    verdict = UpdateGuard().inspect([Message(Error(2, "broke"), reply_to=asked)], {5: expectation(0, 5)})
    assert (verdict.accepted, verdict.rejected) == ([], [])
    assert UpdateGuard().inspect_evaluations([Message(Error(2, "broke"), reply_to=asked)], {5: expectation(0, 5)}) == (
        {},
        [],
    )


@pytest.mark.parametrize(
    "new",
    [
        {"x": np.zeros(4, np.float64)},
        {"x": np.zeros((4, 1), np.float32)},
        {"y": SENT["x"]},
        {},
        {**SENT, "y": SENT["x"]},
        {"x": np.float32([0, 0, 0, np.nan])},
        {"x": np.float32([0, 0, 0, np.inf])},
    ],
)
def test_an_unsound_aggregate_is_refused(new: dict[str, np.ndarray]) -> None:
    with pytest.raises(WireError, match="aggregate"):
        check_aggregate(new, SENT)
    check_aggregate({"x": np.ones(4, np.float32)}, SENT)
