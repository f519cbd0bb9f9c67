"""The round: cohorts, messages, when clients evaluate, and what start does with it all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, honest, honest_train, nodes, small_global, trained
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result, Strategy

from fedpeft.core import wire
from fedpeft.core.errors import ConfigError
from fedpeft.core.events import Aggregated, ClientRejected, Event, RoundKept
from fedpeft.core.orders import CONTROL, Orders
from fedpeft.core.ranks import RankPlan
from fedpeft.core.tensors import weighted_mean
from fedpeft.core.types import ClientInfo, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.view import View

NODES = nodes(8)


def cohort(strategy: FedPeft, server_round: int, kind: str = "train") -> list[int]:
    configure = strategy.configure_train if kind == "train" else strategy.configure_evaluate
    messages = configure(server_round, wire.encode(small_global()), ConfigRecord(), FakeGrid(NODES))
    return [NODES[message.metadata.dst_node_id] for message in messages]


def test_cohorts_depend_on_seed_and_round_alone() -> None:
    one, other = FedAvg(cohort_size=3, seed=5), FedAvg(cohort_size=3, seed=5)
    cohorts = [cohort(one, r) for r in range(1, 9)]
    assert [cohort(other, r) for r in reversed(range(1, 9))] == cohorts[::-1]
    assert all(len(set(c)) == 3 and c == sorted(c) for c in cohorts)
    assert len({tuple(c) for c in cohorts}) > 3
    assert [cohort(FedAvg(cohort_size=3, seed=6), r) for r in range(1, 9)] != cohorts


def test_cohorts_do_not_depend_on_node_ids() -> None:
    shifted = {node * 31 % 101_000: client for node, client in NODES.items()}
    messages = FedAvg(cohort_size=3).configure_train(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(shifted))
    assert [shifted[m.metadata.dst_node_id] for m in messages] == cohort(FedAvg(cohort_size=3), 1)


def test_a_cohort_larger_than_the_federation_is_everybody() -> None:
    assert cohort(FedAvg(cohort_size=100), 1) == list(range(8))


def test_evaluation_cohorts_are_their_own() -> None:
    strategy = FedAvg(cohort_size=3, evaluate_every=1, evaluate_cohort_size=3)
    train, evaluate = ([cohort(strategy, r, kind) for r in range(1, 7)] for kind in ("train", "evaluate"))
    assert train != evaluate
    assert cohort(FedAvg(evaluate_every=1), 1, "evaluate") == list(range(8))


class PerClient(FedPeft):
    """Sends half the tensors, doubled, to odd clients, and a setting to each."""

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        return {"c": global_tensors["c"] * 2} if client.client_id % 2 else global_tensors

    def client_config(self, client: ClientInfo) -> Mapping[str, wire.ConfigValue]:
        return {"rank": client.client_id + 1}


def test_messages_carry_tensors_config_round_and_identity() -> None:
    strategy = PerClient(cohort_size=8)
    strategy.identity = wire.Identity(run_id="r", config_hash="c", model_hash="m")
    messages = strategy.configure_train(4, wire.encode(small_global()), ConfigRecord({"lr": 0.5}), FakeGrid(NODES))
    assert len(list(messages)) == 8
    for message in messages:
        client_id = NODES[message.metadata.dst_node_id]
        assert message.metadata.message_type == "train"
        assert dict(message.content.config_records["config"]) == {
            "lr": 0.5,
            "rank": client_id + 1,
            "server-round": 4,
            "identity.run_id": "r",
            "identity.config_hash": "c",
            "identity.model_hash": "m",
        }
        sent = wire.decode_own(message.content.array_records["arrays"])
        assert list(sent) == (["c"] if client_id % 2 else ["a.lora_A", "b.lora_B", "c"])
        assert np.array_equal(sent["c"], small_global()["c"] * (1 + client_id % 2))


def test_a_reply_is_measured_against_what_its_sender_was_sent() -> None:
    strategy = PerClient(cohort_size=8, min_replies=3)
    events: list[Event] = []
    strategy.observers = (events.append,)
    messages = strategy.configure_train(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(NODES))
    replies = {
        NODES[m.metadata.dst_node_id]: Message(honest_train(NODES[m.metadata.dst_node_id], m), reply_to=m)
        for m in messages
    }
    verdict = strategy.guard.inspect(replies.values(), strategy._expected)
    assert [list(u.tensors) for u in verdict.accepted[:2]] == [["a.lora_A", "b.lora_B", "c"], ["c"]]
    assert verdict.rejected == []


class Ordering(FedAvg):
    """Orders a rank and a scaling of its own from odd clients."""

    def client_config(self, client: ClientInfo) -> Mapping[str, wire.ConfigValue]:
        return Orders(rank=1, scaling=5.0).entries() if client.client_id % 2 else {}


def test_an_update_bears_the_rank_and_scaling_that_were_ordered() -> None:
    strategy = Ordering(cohort_size=2)
    ranks = RankPlan(rank=4, default=4, scaling_for=lambda rank: 8 / rank)
    strategy.view = View(ranks=ranks)
    messages = strategy.configure_train(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(nodes(2)))
    replies = [reply for k, message in enumerate(messages) for reply in honest(k, message)]
    accepted = strategy.guard.inspect(replies, strategy._expected).accepted
    assert [(u.client.client_id, u.client.rank, u.client.scaling) for u in accepted] == [(0, 4, 2.0), (1, 1, 5.0)]


class Correcting(FedAvg):
    """Sends control variates, as SCAFFOLD does."""

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        return {**global_tensors, CONTROL + "c": global_tensors["c"]}


def test_control_variates_go_to_clients_that_train_alone() -> None:
    """They correct gradients, of which an evaluation has none."""
    strategy = Correcting(cohort_size=1, evaluate_every=1)
    sent = {}
    for kind, configure in (("train", strategy.configure_train), ("evaluate", strategy.configure_evaluate)):
        messages = configure(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(NODES))
        sent[kind] = {tuple(message.content.array_records["arrays"]) for message in messages}
    keys = tuple(sorted(small_global()))
    assert sent == {"train": {(*keys[:2], "c", CONTROL + "c")}, "evaluate": {keys}}


@pytest.mark.parametrize(
    ("every", "rounds", "expected"), [(0, 5, []), (1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (3, 3, [3]), (9, 4, [4])]
)
def test_clients_evaluate_every_so_often_and_in_the_last_round(every: int, rounds: int, expected: list[int]) -> None:
    result = FedAvg(cohort_size=3, evaluate_every=every).start(
        FakeGrid(NODES, honest), wire.encode(small_global()), num_rounds=rounds
    )
    assert sorted(result.evaluate_metrics_clientapp) == expected


def test_start_is_flowers_start() -> None:
    """Two rounds by hand: round 2 starts from round 1's mean; server evaluations before round 1 and after each."""
    seen: list[tuple[int, ArrayRecord]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append((server_round, arrays))
        return MetricRecord({"round": server_round})

    strategy = FedAvg(cohort_size=8)
    initial = wire.encode(small_global())
    result = strategy.start(FakeGrid(NODES, honest), initial, num_rounds=2, evaluate_fn=evaluate)
    expected = small_global()
    for server_round in (1, 2):
        expected = weighted_mean([trained(c, expected, server_round) for c in range(8)], [10 + c for c in range(8)])
    assert isinstance(strategy, Strategy)
    assert isinstance(result, Result)
    assert [r for r, _ in seen] == [0, 1, 2]
    assert seen[0][1] is initial
    assert all(np.array_equal(v, expected[k]) for k, v in wire.decode_own(result.arrays).items())
    assert {r: dict(m) for r, m in result.evaluate_metrics_serverapp.items()} == {r: {"round": r} for r in range(3)}
    assert {r: m["num-examples"] for r, m in result.train_metrics_clientapp.items()} == {1: 108, 2: 108}
    assert result.train_metrics_clientapp[1]["train-loss"] == 0.5


def test_a_resumed_start_repeats_the_rounds_that_are_left() -> None:
    ends: list[tuple[int, ArrayRecord]] = []
    grid = FakeGrid(NODES, honest)
    whole = FedAvg(cohort_size=3).start(
        grid, wire.encode(small_global()), num_rounds=4, on_round_end=lambda r, a: ends.append((r, a))
    )
    assert [r for r, _ in ends] == [1, 2, 3, 4]
    rest = FedAvg(cohort_size=3).start(
        FakeGrid(NODES, honest),
        ends[1][1],
        num_rounds=4,
        first_round=3,
        evaluate_fn=lambda r, a: MetricRecord({"round": r}),
    )
    assert rest.arrays.object_id == whole.arrays.object_id
    assert sorted(rest.evaluate_metrics_serverapp) == [3, 4]


def test_a_round_of_errors_keeps_the_model_and_the_run_goes_on() -> None:
    def answer(client_id: int, message: Message) -> list[Message]:
        read = message.content.config_records["config"]["server-round"]
        return [Message(Error(2, "no"), reply_to=message)] if read == 1 else honest(client_id, message)

    events: list[Event] = []
    strategy = FedAvg(cohort_size=8)
    strategy.observers = (events.append,)
    result = strategy.start(FakeGrid(NODES, answer), wire.encode(small_global()), num_rounds=2)
    expected = weighted_mean([trained(c, small_global(), 2) for c in range(8)], [10 + c for c in range(8)])
    assert all(np.array_equal(v, expected[k]) for k, v in wire.decode_own(result.arrays).items())
    kept, aggregated = events
    assert kept == RoundKept(server_round=1, reason="0 good replies, 1 are needed")
    assert isinstance(aggregated, Aggregated)
    assert (aggregated.server_round, aggregated.product_error) == (2, None)


def test_nobody_there_keeps_the_model() -> None:
    result = FedAvg(evaluate_every=1).start(FakeGrid({}), wire.encode(small_global()), num_rounds=2)
    assert np.array_equal(wire.decode_own(result.arrays)["c"], small_global()["c"])


def test_a_stranger_is_logged_because_it_has_no_client_id(caplog: pytest.LogCaptureFixture) -> None:
    strategy = FedAvg(cohort_size=8)
    events: list[Event] = []
    strategy.observers = (events.append,)
    list(strategy.configure_train(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(NODES)))
    stranger = Message(RecordDict(), dst_node_id=5, message_type="train")
    with caplog.at_level(logging.WARNING):
        strategy.aggregate_train(1, [Message(RecordDict(), reply_to=stranger)])
    assert "node 5" in caplog.text
    assert not [event for event in events if isinstance(event, ClientRejected)]


@pytest.mark.parametrize("settings", [{"min_replies": 0}, {"min_replies": 4, "cohort_size": 3}, {"cohort_size": 0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"round\.min_replies must be in 1\.\.cohort_size"):
        FedAvg(**settings)
