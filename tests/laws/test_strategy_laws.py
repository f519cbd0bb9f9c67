"""Laws that every strategy obeys. Strategies are found by glob: a new file is tested by these without a word.

What a model is, is judged by what its tensors do: the change of each adapted weight, and the other tensors as they are
(``worlds.change``). Rules that renew the factors' basis return the same model in other factors.
"""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest
from fake_grid import FakeGrid, honest, nodes
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy
from worlds import (
    World,
    change,
    change_of_client,
    relative_error,
    settings,
    strategies,
    update,
    weighted_change,
    world,
)

from fedpeft.codecs.identity import Identity
from fedpeft.config.pairs import pair_problems
from fedpeft.core import wire
from fedpeft.core.orders import Orders
from fedpeft.core.tensors import specs
from fedpeft.core.types import ClientUpdate, Tensors
from fedpeft.methods.lora import LoRA
from fedpeft.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedpeft.strategies.base import FedPeft

NODES = nodes(5)
NOT_ITSELF: dict[str, str] = {
    "LocalOnly": "nothing is averaged",
    "TIES": "drops the smallest entries, unless density is 1",
    "FLoRIST": "drops the weakest directions, unless energy is 1",
    "FedSB": "its first round measures gradients and trains nothing",
    **dict.fromkeys(("FedAdam", "FedYogi", "FedAdagrad"), "the server's steps have a length of their own"),
}
"""Strategies that make something else of a single client, or of equal ones, and why."""
FEW = "fewer than 2 f + 3 replies are refused"
NOT_ALONE: dict[str, str] = {
    name: FEW for name in ("CoordinateMedian", "TrimmedMean", "Krum", "MultiKrum", "GeometricMedian", "NormClipping")
}
"""Strategies that make something else of a single client, though equal ones are given back, and why."""
NOT_EQUAL: dict[str, str] = {"FedNova": "equal changes after unequal numbers of steps are not equal to FedNova"}
"""Strategies that give a single client back, but make something else of equal ones, and why."""
EXACT: tuple[str, ...] = ("FFALoRA", "RoLoRA", "FLoRA", "FedExLoRA", "FedSB")
"""Strategies whose model is sum_k p_k s_k B_k A_k of the clients' to 1e-5, clients of mixed ranks included."""
MEASURING = ("FedSB",)
"""Strategies whose first round trains nothing."""
BITWISE = ("FedAvg", "FedProx", "FedExLoRA", "LoRAFAIR")
"""Strategies that return one client, or equal ones, bit for bit."""

every = pytest.mark.parametrize("kind", strategies(), ids=lambda kind: kind.__name__)


def new(kind: type[FedPeft], here: World) -> FedPeft:
    strategy = kind(**{"cohort_size": 5, **settings(kind)})
    here.enter(strategy)
    return strategy


def ask(strategy: FedPeft, tensors: Tensors, server_round: int = 1) -> list[Message]:
    return list(strategy.configure_train(server_round, wire.encode(tensors), ConfigRecord(), FakeGrid(NODES)))


def answers(messages: list[Message]) -> list[Message]:
    return [reply for message in messages for reply in honest(NODES[message.metadata.dst_node_id], message)]


def play(strategy: FedPeft, tensors: Tensors, rounds: range) -> Tensors:
    """Return the global tensors after some rounds with five honest clients."""
    for server_round in rounds:
        arrays, _ = strategy.aggregate_train(server_round, answers(ask(strategy, tensors, server_round)))
        assert arrays is not None
        tensors = wire.decode_own(arrays)
    return tensors


def identical(a: Tensors, b: Tensors) -> bool:
    return specs(a) == specs(b) and all(a[k].tobytes() == b[k].tobytes() for k in a)


def updates(strategy: FedPeft, here: World, *, same: bool = False) -> list[ClientUpdate]:
    """Return one update of each of five clients, read-only as decoded messages are; ``same`` makes them equal."""
    return [update(strategy, here, client_id, like=0 if same else None) for client_id in range(5)]


def model(strategy: FedPeft, here: World, tensors: Tensors) -> dict[str, np.ndarray]:
    """Return what the global model is."""
    return change(strategy.model_tensors(tensors), here.ranks.scaling)


def test_strategies_are_found() -> None:
    assert "FedAvg" in [kind.__name__ for kind in strategies()]


@every
def test_is_a_flower_strategy_of_its_own(kind: type[FedPeft]) -> None:
    """Strategies never subclass one another: each is read alone, or with the abstract piece that several share."""
    assert issubclass(kind, Strategy)
    parent = kind.__mro__[1]
    assert parent is FedPeft or (inspect.isabstract(parent) and parent.__mro__[1] is FedPeft)
    assert kind.__doc__
    assert isinstance(kind.linear, bool)


@every
def test_order_of_replies_changes_nothing(kind: type[FedPeft]) -> None:
    results: list[ArrayRecord] = []
    here = world(kind)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        strategy = new(kind, here)
        replies = answers(ask(strategy, here.tensors))
        arrays, metrics = strategy.aggregate_train(1, [replies[i] for i in order])
        assert arrays is not None
        assert metrics is not None
        results.append(arrays)
    assert all(record.object_id == results[0].object_id for record in results)


@every
def test_one_client_returns_itself(kind: type[FedPeft]) -> None:
    if reason := {**NOT_ITSELF, **NOT_ALONE}.get(kind.__name__):
        pytest.skip(reason)
    here = world(kind)
    strategy = new(kind, here)
    one = update(strategy, here, 3)
    after = strategy.aggregate(here.tensors, [one])
    assert relative_error(model(strategy, here, after), change_of_client(here, one)) < 1e-5
    if kind.__name__ in BITWISE:
        assert identical(after, one.tensors)


@every
def test_equal_clients_are_a_fixed_point(kind: type[FedPeft]) -> None:
    if reason := {**NOT_ITSELF, **NOT_EQUAL}.get(kind.__name__):
        pytest.skip(reason)
    here = world(kind, mixed=False)
    strategy = new(kind, here)
    equal = updates(strategy, here, same=True)
    after = strategy.aggregate(here.tensors, equal)
    assert relative_error(model(strategy, here, after), change_of_client(here, equal[0])) < 1e-5
    if kind.__name__ in BITWISE:
        assert identical(after, equal[0].tensors)


@pytest.mark.parametrize("kind", [k for k in strategies() if k.__name__ in EXACT], ids=lambda kind: kind.__name__)
def test_the_product_is_exact(kind: type[FedPeft]) -> None:
    """The merged change of each weight is sum_k p_k s_k B_k A_k to 1e-5 relative, for three rounds."""
    here = world(kind)
    strategy = new(kind, here)
    tensors = here.tensors
    for server_round in (1, 2, 3):
        here = World(tensors=tensors, ranks=here.ranks, mixed=here.mixed)
        here.enter(strategy, server_round)
        sent_back = [update(strategy, here, client_id, server_round=server_round) for client_id in range(5)]
        tensors = strategy.aggregate(tensors, sent_back)
        if server_round > 1 or kind.__name__ not in MEASURING:
            assert relative_error(model(strategy, here, tensors), weighted_change(here, sent_back)) < 1e-5


@every
def test_keys_shapes_and_dtypes_are_stable(kind: type[FedPeft]) -> None:
    here = world(kind)
    strategy = new(kind, here)
    assert specs(play(strategy, here.tensors, range(1, 4))) == specs(here.tensors)
    fresh = new(kind, here)
    assert specs(fresh.aggregate(here.tensors, updates(fresh, here))) == specs(here.tensors)


@every
def test_what_is_sent_can_be_followed(kind: type[FedPeft]) -> None:
    """Orders are sound, something comes back, and factors come at the client's rank."""
    here = world(kind)
    strategy = new(kind, here)
    for client_id in range(5):
        client = here.client(client_id)
        sent = strategy.client_tensors(here.tensors, client)
        orders = Orders.read(strategy.client_config(client))
        assert orders.returned(sent) or orders.keep
        assert all(sent[k].shape[0] == client.rank for k in sent if k.endswith("lora_A.weight") and k in here.tensors)


@every
def test_nothing_given_is_mutated(kind: type[FedPeft]) -> None:
    here = world(kind)
    strategy = new(kind, here)
    untouched = {key: value.copy() for key, value in here.tensors.items()}
    for value in here.tensors.values():
        value.flags.writeable = False
    given = updates(strategy, here)
    copies = [{k: v.copy() for k, v in one.tensors.items()} for one in given]
    strategy.client_tensors(here.tensors, given[0].client)
    strategy.client_config(given[0].client)
    result = strategy.aggregate(here.tensors, given)
    assert identical(here.tensors, untouched)
    assert all(identical(one.tensors, copy) for one, copy in zip(given, copies, strict=True))
    assert not any(np.shares_memory(result[k], here.tensors[k]) for k in result)


@every
def test_aggregate_is_a_function_of_its_arguments_and_state(kind: type[FedPeft]) -> None:
    here = world(kind)
    one, other = new(kind, here), new(kind, here)
    assert identical(play(one, here.tensors, range(1, 3)), play(other, here.tensors, range(1, 3)))


@every
def test_state_survives_a_checkpoint(kind: type[FedPeft], tmp_path: Path) -> None:
    here = world(kind)
    first = new(kind, here)
    middle = play(first, here.tensors, range(1, 3))
    save_checkpoint(
        tmp_path,
        Checkpoint(server_round=2, tensors=middle, state=first.state(), virtual_clock_s=0.0, model_hash="m"),
        keep=2,
    )
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert identical(dict(loaded.tensors), middle)
    second = new(kind, here)
    second.load_state(loaded.state)
    assert set(second.state()) == set(first.state())
    for name, value in first.state().items():
        assert type(second.state()[name]) is type(value)
        assert np.array_equal(second.state()[name], value)
    assert identical(first.model_tensors(middle), second.model_tensors(dict(loaded.tensors)))
    assert identical(play(first, middle, range(3, 6)), play(second, dict(loaded.tensors), range(3, 6)))


@every
def test_mixed_ranks_are_borne_or_refused(kind: type[FedPeft]) -> None:
    """A strategy that says it bears mixed ranks gives every device its own; the others refuse such a plan."""
    here = world(kind, mixed=True)
    strategy = kind(**{"cohort_size": 5, **settings(kind)})
    problems = pair_problems(strategy, LoRA(rank=3, ranks={"small": 1, "middle": 2}), Identity())
    refused = any(line.startswith(f"strategy {kind.__name__} needs one rank for all clients") for line in problems)
    assert refused != kind.mixed_ranks
    if kind.mixed_ranks:
        here.enter(strategy)
        assert {update(strategy, here, client_id).client.rank for client_id in range(3)} == {1, 2, 3}
