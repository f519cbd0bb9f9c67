"""Laws that every strategy obeys. Strategies are found by glob: a new file is tested by these without a word."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_grid import FakeGrid, honest, nodes, small_global, trained
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy

from fedpeft.core import wire
from fedpeft.core.paths import conf_dir
from fedpeft.core.tensors import specs
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedpeft.strategies import base
from fedpeft.strategies.base import FedPeft

NODES = nodes(5)


def strategies() -> list[type[FedPeft]]:
    """Return every strategy class that a file in fedpeft/strategies defines."""
    names = sorted(
        path.stem for path in Path(base.__file__).parent.glob("*.py") if path.stem not in ("__init__", "base")
    )
    modules = [importlib.import_module(f"fedpeft.strategies.{name}") for name in names]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, FedPeft) and kind.__module__ == module.__name__
    ]


def settings(kind: type[FedPeft]) -> dict[str, Any]:
    """Return what the strategy's YAML sets, without what the run decides."""
    for path in (conf_dir() / "strategy").glob("*.yaml"):
        node = yaml.safe_load(path.read_text())
        if node["_target_"] == f"{kind.__module__}.{kind.__qualname__}":
            return {
                k: v for k, v in node.items() if k != "_target_" and not (isinstance(v, str) and v.startswith("${"))
            }
    return {}


every = pytest.mark.parametrize("kind", strategies(), ids=lambda kind: kind.__name__)


def new(kind: type[FedPeft]) -> FedPeft:
    return kind(**{"cohort_size": 5, **settings(kind)})


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


def updates(strategy: FedPeft, tensors: Tensors, *, same: bool = False) -> list[ClientUpdate]:
    """Return one update of each client on what the strategy sent it, read-only as decoded messages are."""
    made = []
    for client_id in range(5):
        client = ClientInfo(client_id=client_id, node_id=100 - client_id, num_examples=3 + client_id, rank=2)
        changed = trained(0 if same else client_id, dict(strategy.client_tensors(tensors, client)))
        for value in changed.values():
            value.flags.writeable = False
        made.append(
            ClientUpdate(client=client, tensors=changed, num_examples=3 + client_id, metrics={"train-loss": 1.0})
        )
    return made


def test_strategies_are_found() -> None:
    assert "FedAvg" in [kind.__name__ for kind in strategies()]


@every
def test_is_a_flower_strategy_of_its_own(kind: type[FedPeft]) -> None:
    """Strategies never subclass one another: each is read alone."""
    assert issubclass(kind, Strategy)
    assert kind.__mro__[1] is FedPeft
    assert kind.__doc__
    assert isinstance(kind.linear, bool)


@every
def test_order_of_replies_changes_nothing(kind: type[FedPeft]) -> None:
    results: list[ArrayRecord] = []
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        strategy = new(kind)
        replies = answers(ask(strategy, small_global()))
        arrays, metrics = strategy.aggregate_train(1, [replies[i] for i in order])
        assert arrays is not None
        assert metrics is not None
        results.append(arrays)
    assert all(record.object_id == results[0].object_id for record in results)


@every
def test_one_client_returns_itself(kind: type[FedPeft]) -> None:
    strategy = new(kind)
    one = updates(strategy, small_global())[3]
    assert identical(strategy.aggregate(small_global(), [one]), one.tensors)


@every
def test_equal_clients_are_a_fixed_point(kind: type[FedPeft]) -> None:
    strategy = new(kind)
    equal = updates(strategy, small_global(), same=True)
    assert identical(strategy.aggregate(small_global(), equal), equal[0].tensors)


@every
def test_keys_shapes_and_dtypes_are_stable(kind: type[FedPeft]) -> None:
    strategy = new(kind)
    start = small_global()
    assert specs(play(strategy, start, range(1, 4))) == specs(start)
    assert specs(strategy.aggregate(start, updates(strategy, start))) == specs(start)


@every
def test_nothing_given_is_mutated(kind: type[FedPeft]) -> None:
    strategy = new(kind)
    tensors = small_global()
    for value in tensors.values():
        value.flags.writeable = False
    given = updates(strategy, tensors)
    copies = [{k: v.copy() for k, v in update.tensors.items()} for update in given]
    strategy.client_tensors(tensors, given[0].client)
    strategy.client_config(given[0].client)
    result = strategy.aggregate(tensors, given)
    assert identical(tensors, small_global())
    assert all(identical(update.tensors, copy) for update, copy in zip(given, copies, strict=True))
    assert not any(np.shares_memory(result[k], tensors[k]) for k in result)


@every
def test_aggregate_is_a_function_of_its_arguments_and_state(kind: type[FedPeft]) -> None:
    one, other = new(kind), new(kind)
    assert identical(play(one, small_global(), range(1, 3)), play(other, small_global(), range(1, 3)))


@every
def test_state_survives_a_checkpoint(kind: type[FedPeft], tmp_path: Path) -> None:
    first = new(kind)
    middle = play(first, small_global(), range(1, 3))
    save_checkpoint(
        tmp_path,
        Checkpoint(server_round=2, tensors=middle, state=first.state(), virtual_clock_s=0.0, model_hash="m"),
        keep=2,
    )
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert identical(dict(loaded.tensors), middle)
    second = new(kind)
    second.load_state(loaded.state)
    assert set(second.state()) == set(first.state())
    for name, value in first.state().items():
        assert type(second.state()[name]) is type(value)
        assert np.array_equal(second.state()[name], value)
    assert identical(play(first, middle, range(3, 6)), play(second, dict(loaded.tensors), range(3, 6)))
