"""Server optimisers: numbers by hand, Flower's own strategies as a second opinion, and any linear rule inside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, honest, nodes, small_global
from flwr.app import ConfigRecord, Message
from flwr.serverapp import strategy as stock
from worlds import World, update, world

from fedpeft import config as cfg
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.events import ClientRejected, Event
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedadagrad import FedAdagrad
from fedpeft.strategies.fedadam import FedAdam
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.fedavgm import FedAvgM
from fedpeft.strategies.fednova import FedNova
from fedpeft.strategies.fedyogi import FedYogi
from fedpeft.strategies.ffa_lora import FFALoRA
from fedpeft.strategies.rolora import RoLoRA

ALL = (FedAvgM, FedAdam, FedYogi, FedAdagrad)
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
NODES = nodes(5)


def step(strategy: FedPeft, x: float, proposed: float) -> float:
    """Return where one number goes when FedAvg over two clients proposes another."""
    tensors = {"x": np.float32([x])}
    given = [
        ClientUpdate(
            client=ClientInfo(client_id=i, node_id=i, num_examples=1),
            tensors={"x": np.float32([proposed + away])},
            num_examples=1,
            sent=tensors,
        )
        for i, away in enumerate((-1, 1))
    ]
    new = strategy.aggregate(tensors, given)
    assert new["x"].dtype == np.float32
    return float(new["x"][0])


def test_fedavgm_by_hand() -> None:
    """beta 1/2, rate 1/2. D = 2: v = 2, x = 0 + 1. Then 4 is proposed, D = 3: v = 1 + 3 = 4, x = 1 + 2."""
    strategy = FedAvgM(beta=0.5, server_lr=0.5)
    assert step(strategy, 0, 2) == 1.0
    assert step(strategy, 1, 4) == 3.0


def test_the_first_round_of_fedavgm_is_fedavg() -> None:
    assert step(FedAvgM(), 1, 4) == 4.0


def test_fedadam_by_hand() -> None:
    """beta1 1/2, beta2 3/4, tau 1, rate 3, v_0 = 0.

    D = 4: m = 2, v = 16/4 = 4, step 3 x 2 / (2 + 1) = 2. Then D = -4: m = 1 - 2 = -1, v = 3 + 4 = 7,
    step -3 / (sqrt 7 + 1). With v_0 = tau^2 = 1 the first v is 3/4 + 4, the step 6 / (sqrt 4.75 + 1).
    """
    settings: dict[str, Any] = {"beta1": 0.5, "beta2": 0.75, "tau": 1.0, "server_lr": 3.0}
    strategy = FedAdam(initial_v=0.0, **settings)
    assert step(strategy, 0, 4) == 2.0
    assert step(strategy, 2, -2) == pytest.approx(2 - 3 / (math.sqrt(7) + 1), rel=1e-6)
    assert step(FedAdam(**settings), 0, 4) == pytest.approx(6 / (math.sqrt(4.75) + 1), rel=1e-6)


def test_bias_correction_by_hand() -> None:
    """Adam's first step is its rate, whatever D: m = D/2, v = D^2/4, times sqrt(1 - 3/4) / (1 - 1/2) = 1."""
    strategy = FedAdam(beta1=0.5, beta2=0.75, tau=1e-12, server_lr=3.0, initial_v=0.0, bias_correction=True)
    assert step(strategy, 0, 0.25) == pytest.approx(3.0, rel=1e-6)


def test_fedyogi_by_hand() -> None:
    """beta1 0, beta2 3/4, tau 1, v_0 = 1, rate 1.

    D = 4: v = 1 - 16/4 x sign(1 - 16) = 5, step 4 / (sqrt 5 + 1). Then D = 1: v = 5 - 1/4 = 4.75 (Adam's would be 4).
    """
    strategy = FedYogi(beta1=0.0, beta2=0.75, tau=1.0, server_lr=1.0)
    assert step(strategy, 0, 4) == pytest.approx(4 / (math.sqrt(5) + 1), rel=1e-6)
    assert step(strategy, 0, 1) == pytest.approx(1 / (math.sqrt(4.75) + 1), rel=1e-6)


def test_fedadagrad_by_hand() -> None:
    """v_0 = 0, tau 1, rate 5. D = 4: v = 16, step 20 / 5. Then D = 3: v = 25, step 15 / 6."""
    strategy = FedAdagrad(initial_v=0.0, tau=1.0, server_lr=5.0)
    assert step(strategy, 0, 4) == 4.0
    assert step(strategy, 4, 7) == 6.5


def alone(strategy: FedPeft, tensors: Tensors, key: str, by: float) -> Tensors:
    """Return the tensors after a round in which one client trained one of them."""
    client = ClientInfo(client_id=0, node_id=0, num_examples=1)
    after = {key: tensors[key] + np.float32(by)}
    return strategy.aggregate(tensors, [ClientUpdate(client=client, tensors=after, num_examples=1, sent=tensors)])


def test_the_momentum_of_what_nobody_trained_waits() -> None:
    """beta 1/2. x moves by 4, then y alone, then x by 4 again: v_x = 4, still 4, 4/2 + 4 = 6, so that x = 4 + 6."""
    strategy, tensors = FedAvgM(beta=0.5), {"x": np.float32([0]), "y": np.float32([0])}
    for key in ("x", "y", "x"):
        tensors = alone(strategy, tensors, key, 4.0)
    assert {key: value.tolist() for key, value in tensors.items()} == {"x": [10.0], "y": [4.0]}


def test_bias_is_corrected_by_a_tensors_own_steps() -> None:
    """y is trained in round 3 for the first time: its step is the rate, as x's was in round 1."""
    settings: dict[str, Any] = {"beta1": 0.5, "beta2": 0.75, "tau": 1e-12, "initial_v": 0.0}
    strategy = FedAdam(server_lr=3.0, bias_correction=True, **settings)
    tensors = {"x": np.float32([0]), "y": np.float32([0])}
    for key in ("x", "x", "y"):
        tensors = alone(strategy, tensors, key, 0.25)
    assert tensors["y"].item() == pytest.approx(3.0, rel=1e-6)


@every
def test_what_a_rule_tells_reaches_the_observers(kind: type[Any]) -> None:
    told: list[Event] = []
    strategy, tensors = kind(rule=FedNova()), {"x": np.float32([0])}
    strategy.observers = (told.append,)
    given = [
        ClientUpdate(
            client=ClientInfo(client_id=i, node_id=i, num_examples=1),
            tensors={"x": np.float32([1])},
            num_examples=1,
            metrics={"train-steps": steps},
            sent=tensors,
        )
        for i, steps in enumerate((3, 0))
    ]
    strategy.aggregate(tensors, given)
    assert [(e.client_id, e.check) for e in told if isinstance(e, ClientRejected)] == [(1, "steps")]


def replies(strategy: FedPeft, tensors: Tensors, server_round: int) -> list[Message]:
    messages = strategy.configure_train(server_round, wire.encode(tensors), ConfigRecord(), FakeGrid(NODES))
    return [reply for m in messages for reply in honest(NODES[m.metadata.dst_node_id], m)]


@pytest.mark.parametrize(
    ("ours", "flowers"),
    [
        (FedAvgM(server_lr=0.7, beta=0.8), stock.FedAvgM(server_learning_rate=0.7, server_momentum=0.8)),
        (FedAdam(server_lr=0.02, initial_v=0.0, bias_correction=True), stock.FedAdam(eta=0.02)),
        (FedYogi(server_lr=0.02, initial_v=0.0), stock.FedYogi(eta=0.02)),
        (FedAdagrad(server_lr=0.02, initial_v=0.0), stock.FedAdagrad(eta=0.02)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_flowers_strategies_agree(ours: FedPeft, flowers: Any) -> None:
    """Over four rounds to 1e-5, from v_0 = 0.

    Flower corrects the bias of round r as if it were round r + 1, so it is told r - 1 here.
    """
    tensors = small_global()
    for server_round in (1, 2, 3, 4):
        given = replies(ours, tensors, server_round)
        record = wire.encode(tensors)
        if not isinstance(flowers, stock.FedAvgM):
            flowers.current_arrays = tensors
        elif flowers.current_arrays is None:
            flowers.current_arrays = record
        arrays, _ = ours.aggregate_train(server_round, given)
        theirs, _ = flowers.aggregate_train(server_round - 1, given)
        assert arrays is not None
        tensors = wire.decode_own(arrays)
        for key, value in theirs.items():
            assert np.allclose(tensors[key], value.numpy(), rtol=1e-5, atol=1e-6)


def rounds(strategy: FedPeft, here: World, last: int) -> list[Tensors]:
    """Return the global tensors before round 1 and after each, on tensors as worlds have them."""
    seen = [here.tensors]
    for server_round in range(1, last + 1):
        here = World(tensors=seen[-1], ranks=here.ranks, mixed=here.mixed)
        here.enter(strategy, server_round)
        given = [update(strategy, here, i, server_round=server_round) for i in range(5)]
        seen.append(strategy.aggregate(seen[-1], given))
    return seen


@every
def test_a_rule_says_what_is_sent_trained_and_needed(kind: type[Any]) -> None:
    here = world(FFALoRA)
    strategy = kind(rule=FFALoRA())
    assert strategy.requires == FFALoRA.requires
    assert kind.requires == frozenset()
    seen = rounds(strategy, here, 3)
    sent = strategy.client_tensors(here.tensors, here.client(0))
    assert not any(key.endswith("lora_A.weight") for key in sent)
    assert strategy.client_config(here.client(0)) == FFALoRA().client_config(here.client(0))
    for key, value in here.tensors.items():
        assert np.array_equal(seen[-1][key], value) == key.endswith("lora_A.weight")


@every
def test_what_nobody_trained_stays_whatever_its_momentum(kind: type[Any]) -> None:
    """RoLoRA over a server optimiser: B moves in odd rounds alone, A in even ones, both with moments by round 3."""
    here = world(RoLoRA)
    seen = rounds(kind(rule=RoLoRA()), here, 4)
    for server_round in (1, 2, 3, 4):
        frozen = "lora_A.weight" if server_round % 2 else "lora_B.weight"
        for key in here.tensors:
            assert np.array_equal(seen[server_round][key], seen[server_round - 1][key]) == key.endswith(frozen)


class Counting(FedAvg):
    """Has state of its own, and reads the round off its view."""

    count = 0

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        self.count += self.view.server_round
        return super().aggregate(global_tensors, updates)

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state(self, state: Any) -> None:
        self.count = state["count"]


@every
def test_state_holds_the_rules_own_and_goes_on_bit_for_bit(kind: type[Any]) -> None:
    here = world(FedAvg)
    first, second = kind(rule=Counting()), kind(rule=Counting())
    middle = World(tensors=rounds(first, here, 3)[-1], ranks=here.ranks, mixed=False)
    assert first.state()["rule.count"] == 1 + 2 + 3
    second.load_state(first.state())
    assert second.rule.count == 6
    ends = [rounds(one, middle, 2)[-1] for one in (first, second)]
    assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])


class Nonlinear(FedAvg):
    """Needs each update by itself."""

    linear = False


class Turning(FedAvg):
    """Has another basis in each round."""

    renews_basis = True


@every
def test_rules_that_cannot_be_stepped_over_are_refused_by_name(kind: type[Any]) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} cannot step over Nonlinear, which is not linear"):
        kind(rule=Nonlinear())
    with pytest.raises(ConfigError, match=f"{kind.__name__} cannot step over Turning, which renews"):
        kind(rule=Turning())


@every
@pytest.mark.parametrize("inner", [FedAvgM, FedAdam])
def test_optimisers_do_not_step_over_one_another(kind: type[Any], inner: type[Any]) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} cannot step over {inner.__name__}, which is a server opt"):
        kind(rule=inner())


@every
def test_a_rule_given_by_name_is_told_how_to_be_written(kind: type[Any]) -> None:
    """``strategy.rule=ffa_lora`` sets a text; Hydra's way to choose a member is ``strategy@strategy.rule=ffa_lora``."""
    with pytest.raises(ConfigError, match=r"got 'ffa_lora' \(write strategy@strategy.rule="):
        kind(rule="ffa_lora")


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        (FedAvgM, {"beta": 1.0}, "strategy.beta must be in"),
        (FedAvgM, {"server_lr": 0.0}, "strategy.server_lr must be"),
        (FedAdam, {"tau": 0.0}, "strategy.tau must be"),
        (FedAdam, {"beta2": -0.1}, "strategy.beta2 must be in"),
        (FedYogi, {"server_lr": math.inf}, "strategy.server_lr must be"),
        (FedAdagrad, {"initial_v": -1.0}, "strategy.initial_v must be"),
        (FedAvgM, {"beta": "x"}, "strategy.beta must be in .*got 'x'"),
        (FedAdam, {"server_lr": "fast"}, "strategy.server_lr must be a positive number, got 'fast'"),
        (FedAdagrad, {"initial_v": "x"}, "strategy.initial_v must be"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Any], settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        kind(**settings)


@every
def test_a_step_that_overflows_keeps_the_moments(kind: type[Any]) -> None:
    strategy = kind(server_lr=1e39)
    with pytest.raises(WireError, match="NaN or infinity"):
        step(strategy, 0, 4)
    assert strategy.state() == {}


def test_the_config_nests_any_rule() -> None:
    config = cfg.compose(["strategy=fedadam", "strategy@strategy.rule=ffa_lora", "strategy.tau=0.01"])
    cfg.check(config)
    strategy = cfg.build(config["strategy"])
    assert (type(strategy).__name__, type(strategy.rule).__name__, strategy.tau) == ("FedAdam", "FFALoRA", 0.01)
    with pytest.raises(ConfigError, match="strategy FedAdam needs LoRA factors"):
        cfg.check(cfg.compose(["strategy=fedadam", "strategy@strategy.rule=ffa_lora", "method=bitfit"]))
    with pytest.raises(ConfigError, match="cannot step over"):
        cfg.check(cfg.compose(["strategy=fedadam", "strategy@strategy.rule=flexlora"]))
