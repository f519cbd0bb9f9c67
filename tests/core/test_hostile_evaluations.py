"""One of six clients lies in an evaluation: the figures are those of the other five, and the liar is named."""

from __future__ import annotations

import random

import pytest
from fake_grid import FakeGrid, honest, honest_evaluate, nodes, replaced, small_global
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from forge import plus, reply, with_content, with_echo, with_metrics, without
from hostile import Case

from fedpeft.core import wire
from fedpeft.core.events import ClientRejected, Event
from fedpeft.strategies.fedavg import FedAvg

NODES = nodes(6)


def evaluation(**changes: object) -> Case:
    """An evaluation whose metrics are changed; None leaves one out."""
    return Case(str(changes)[:60], "metrics", with_metrics(**changes))


EVALUATIONS = [
    Case(
        "arrays in an evaluation",
        "records",
        with_content(lambda c: plus(c, wire.ARRAYS, wire.encode(small_global()))),
    ),
    Case("empty content", "records", with_content(lambda c: RecordDict())),
    Case("no metrics", "records", with_content(lambda c: without(c, wire.METRICS))),
    Case("empty metrics", "weight", with_content(lambda c: plus(c, wire.METRICS, MetricRecord()))),
    Case("another round", "round", with_echo(server_round=2)),
    Case("another base model", "identity", with_echo(model_hash="other")),
    Case("two replies", "duplicate", lambda m, c: [reply(c, m), reply(replaced(c), m)]),
    Case("weight", "weight", with_metrics(num_examples=-1)),
    evaluation(eval_accuracy=None),
    evaluation(eval_loss=None),
    evaluation(eval_accuracy=[0.5]),
    evaluation(eval_accuracy=1.5),
    evaluation(eval_accuracy=-0.1),
    evaluation(eval_accuracy=float("nan")),
    evaluation(eval_loss=float("inf")),
    evaluation(eval_loss=10**400),
    evaluation(train_loss=1.0),
    evaluation(group_count=10.0),
    evaluation(group_count=None),
    evaluation(group_count=[10.0]),
    evaluation(group_count=[10.0, 10.0, 10.0], group_correct=[1.0, 1.0, 1.0]),
    evaluation(group_count=None, group_correct=None),
    evaluation(group_correct=[11.0, 5.0]),
    evaluation(group_correct=[-1.0, 5.0]),
    evaluation(group_correct=[float("nan"), 5.0]),
    evaluation(group_count=[10.0, float("inf")]),
    evaluation(group_count=[0.5] * 100_000, group_correct=[0.5] * 100_000),
]


@pytest.mark.parametrize("case", EVALUATIONS, ids=lambda case: case.name)
def test_a_bad_evaluation_is_left_out_and_named(case: Case) -> None:
    """Without client 5: accuracies 0.5 + 0.05 k, k < 5: mean 0.6, worst 0.5; losses 1..5; groups 25, 35 of 50."""
    events: list[Event] = []
    strategy = FedAvg(evaluate_every=1)
    strategy.observers = (events.append,)
    asked = strategy.configure_evaluate(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(NODES))
    messages = {NODES[message.metadata.dst_node_id]: message for message in asked}
    replies = [answer for c in range(5) for answer in honest(c, messages[c])]
    replies += case.make(messages[5], honest_evaluate(5, messages[5]))
    random.Random(1).shuffle(replies)
    record = strategy.aggregate_evaluate(1, replies)
    assert record is not None
    assert [(e.client_id, e.check) for e in events if isinstance(e, ClientRejected)] == [(5, case.check)]
    assert record["client_accuracy_mean"] == pytest.approx(0.6)
    assert record["client_accuracy_worst_decile"] == 0.5
    assert record["client_loss_mean"] == 3.0
    assert record["group-correct"] == [25.0, 35.0]
    assert record["group-count"] == [50.0, 50.0]
