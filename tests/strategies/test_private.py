"""Client-level privacy in a strategy's round: booked before it is released, and every admitted rule bears it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, grid_of_app, honest, nodes, small_global
from toy import refusals

from fedpeft import config as cfg
from fedpeft.client.app import build_app
from fedpeft.client.building import runtime_for
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.core.events import Aggregated, Event, RoundKept, RunStopped
from fedpeft.core.guard import Expectation
from fedpeft.core.paths import conf_dir
from fedpeft.core.tensors import specs, subtract
from fedpeft.core.types import ClientInfo, ClientUpdate
from fedpeft.engines.session import travelling
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.client_level import ClientLevel
from fedpeft.privacy.ledger import LEDGER, Ledger
from fedpeft.server.app import build_strategy
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.private import PrivateRounds
from fedpeft.strategies.surroundings import Surroundings

CLIENTS = 5
SETTINGS = {
    "fed_sb": ["strategy.init=random"],
    "slora": ["strategy.sparse_rounds=1"],
    "fedpeptao": ["strategy.warmup_rounds=1"],
}
METHODS = {"fed_sb": "lora_sb", "slora": "slora", "fedpeptao": "prefix"}


def rounds_of(folder: Path, **settings: Any) -> PrivateRounds:
    """Return rounds in which every client takes part."""
    plan = ClientLevel(**{"noise_multiplier": 4.0, **settings}).plan(rounds=2, cohort_size=CLIENTS, num_clients=CLIENTS)
    return PrivateRounds(plan, Ledger(folder / LEDGER), "run")


def sent_to_all() -> Expectation:
    anybody = ClientInfo(client_id=-1, node_id=-1, num_examples=1)
    tensors = small_global()
    return Expectation(client=anybody, server_round=1, identity=wire.Identity(), sent=tensors, returned=sorted(tensors))


def update(client_id: int, expected: Expectation, change: float) -> ClientUpdate:
    tensors = {key: value + np.float32(change) for key, value in expected.sent.items()}
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=9)
    return ClientUpdate(client=client, tensors=tensors, num_examples=9, sent=expected.sent)


def test_what_cannot_be_booked_is_not_released(tmp_path: Path) -> None:
    """A ledger that is closed takes no line; the rounds then give nothing away."""
    rounds, expected = rounds_of(tmp_path), sent_to_all()
    rounds.release(1, expected, [update(0, expected, 0.1)])
    assert rounds.releases == 1
    rounds._ledger.close()
    with pytest.raises(PrivacyError, match="not open for writing"):
        rounds.release(2, expected, [update(0, expected, 0.1)])


def test_the_line_is_on_the_disk_when_the_strategy_is_called(tmp_path: Path) -> None:
    lines: list[int] = []

    class Looking(FedAvg):
        def aggregate(self, global_tensors: Any, updates: Any) -> Any:
            lines.append(len((tmp_path / LEDGER).read_text().splitlines()))
            return super().aggregate(global_tensors, updates)

    strategy = Looking(cohort_size=CLIENTS)
    strategy.around = Surroundings(privacy=rounds_of(tmp_path))
    strategy.start(FakeGrid(nodes(CLIENTS), honest), wire.encode(small_global()), num_rounds=2)
    assert lines == [1, 2]


def test_the_run_stops_before_the_round_that_passes_the_budget(tmp_path: Path) -> None:
    """The budget lies between what two and what three rounds spend."""
    two, three = (epsilon([Release(noise_multiplier=4.0)] * count, 0.1) for count in (2, 3))
    events: list[Event] = []
    strategy = FedAvg(cohort_size=CLIENTS)
    rounds = rounds_of(tmp_path, epsilon=(two + three) / 2, delta=0.1)
    strategy.around, strategy.observers = Surroundings(privacy=rounds), (events.append,)
    result = strategy.start(FakeGrid(nodes(CLIENTS), honest), wire.encode(small_global()), num_rounds=9)
    assert [event.server_round for event in events if isinstance(event, Aggregated)] == [1, 2]
    (stopped,) = [event for event in events if isinstance(event, RunStopped)]
    assert stopped.server_round == 3
    assert stopped.reason.startswith("budget spent: population")
    assert (rounds.releases, rounds.spent) == (2, two)
    assert not np.array_equal(wire.decode_own(result.arrays)["c"], small_global()["c"])


def test_a_checkpoint_remembers_the_last_line_and_the_noise(tmp_path: Path) -> None:
    rounds, expected = rounds_of(tmp_path / "a", adaptive={}), sent_to_all()
    rounds.release(1, expected, [update(client, expected, 0.1) for client in range(CLIENTS)])
    state = rounds.state()
    assert state["clip_norm"] != 1.0, "adaptive clipping has moved it"
    rounds._ledger.close()
    again = rounds_of(tmp_path / "a", adaptive={}, noise_multiplier=9.0)
    again.load_state(state)
    assert (again.plan.clip_norm, again.plan.noise_multiplier) == (rounds.plan.clip_norm, 4.0)
    with pytest.raises(PrivacyError, match="lacks release"):
        rounds_of(tmp_path / "other").load_state(state)


# -- every rule that is let through ------------------------------------------------------------------------------------


def config_for(name: str, toy: list[str], folder: Path) -> dict[str, Any]:
    kept = [one for one in toy if not one.startswith("method.")]
    overrides = [f"strategy={name}", f"method={METHODS.get(name, 'lora')}", *SETTINGS.get(name, [])]
    privacy = ["privacy=client_level", "privacy.epsilon=null", "privacy.noise_multiplier=4"]
    small = ["client.optimizer=sgd", "client.local_steps=1", "cohort_size=5", "num_clients=5", "rounds=2"]
    return {**cfg.compose([*kept, *overrides, *privacy, *small]), "run_dir": str(folder)}


@pytest.fixture(scope="module")
def clients(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Runtime, Any]]:
    """Return a function from a strategy to the runtime and the app of clients with the method that it needs."""
    made: dict[str, tuple[Runtime, Any]] = {}

    def get(name: str) -> tuple[Runtime, Any]:
        method = METHODS.get(name, "lora")
        if method not in made:
            config = config_for({"lora": "fedavg"}.get(method, name), toy, tmp_path_factory.mktemp(method))
            text = travelling({**config, "model": {**config["model"], "dtype": "float32"}})
            made[method] = (runtime_for(text, None), build_app(text, None))
        return made[method]

    return get


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml")))
def test_what_is_let_through_runs_on_real_clients(
    name: str, toy: list[str], clients: Callable[[str], tuple[Runtime, Any]], tmp_path: Path
) -> None:
    """Two rounds of five clients: both are released, none keeps the old model, and the form stays what it was."""
    config = config_for(name, toy, tmp_path)
    try:
        cfg.check(config)
    except ConfigError as error:
        refused = [line for line in error.problems if "ClientLevel" in line]
        if not refused:
            raise
        return
    runtime, app = clients(name)

    events: list[Event] = []
    strategy: Any = build_strategy(config)
    strategy.view = replace(strategy.view, ranks=runtime.ranks)
    strategy.around = Surroundings(privacy=rounds_of(tmp_path))
    strategy.observers = (events.append,)
    result = strategy.start(grid_of_app(nodes(CLIENTS), app), wire.encode(runtime.initial), num_rounds=2)
    assert [event for event in events if isinstance(event, RoundKept)] == []
    assert strategy.around.privacy.releases == 2
    after = wire.decode_own(result.arrays)
    assert specs(after) == runtime.shared_spec
    moved = [key for key, value in subtract(after, runtime.initial).items() if np.any(value)]
    assert moved or name == "local_only"


def test_the_rules_of_the_study_are_let_through(toy: list[str], tmp_path: Path) -> None:
    for name in ("fedavg", "ffa_lora", "rolora", "fedsa_lora", "fedadam", "fed_sb"):
        assert refusals(config_for(name, toy, tmp_path)) == []
    (line,) = refusals(config_for("krum", toy, tmp_path))
    assert "Krum" in line and "ClientLevel" in line
