"""FedProx, SCAFFOLD and FedNova: by hand, and against the drift they were made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.events import ClientRejected, Event
from fedpeft.core.orders import CONTROL, Orders
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.fednova import FedNova
from fedpeft.strategies.fedprox import FedProx
from fedpeft.strategies.scaffold import SCAFFOLD

LR = 0.1


def client(client_id: int, num_examples: int = 1) -> ClientInfo:
    return ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples)


def reply(client_id: int, sent: Tensors, x: list[float], steps: float, num_examples: int = 1) -> ClientUpdate:
    return ClientUpdate(
        client=client(client_id, num_examples),
        tensors={"x": np.float32(x)},
        num_examples=num_examples,
        metrics={"train-steps": steps},
        sent=sent,
    )


# -- the simulation: F_k(x) = 1/2 sum_i h_ki (x_i - z_ki)^2, whose sum has its minimum at sum h z / sum h -----------

CURVES = np.array([[1.0, 4.0], [3.0, 1.0], [0.5, 2.0]])
MINIMA = np.array([[-2.0, 3.0], [4.0, -1.0], [1.0, 5.0]])
OPTIMUM = (CURVES * MINIMA).sum(0) / CURVES.sum(0)


def descend(strategy: FedPeft, sent: Tensors, client_id: int, steps: int) -> ClientUpdate:
    """Train a client by plain gradient descent as ``client/trainer`` does: control variates join the gradient."""
    orders = Orders.read(strategy.client_config(client(client_id)))
    y = sent["x"].astype(np.float64)
    for _ in range(steps):
        gradient = CURVES[client_id] * (y - MINIMA[client_id]) + orders.prox * (y - sent["x"])
        y -= LR * (gradient + sent.get(CONTROL + "x", 0.0))
    return reply(client_id, sent, list(y), steps)


def run(
    strategy: FedPeft, rounds: int, steps: Callable[[int], int] = lambda k: 20, each: int = 3, seed: int = 0
) -> np.ndarray:
    """Return where the global model is after rounds with ``each`` of the three clients."""
    rng = np.random.default_rng(seed)
    tensors = {"x": np.zeros(2, np.float32)}
    for _ in range(rounds):
        cohort = sorted(int(k) for k in rng.choice(3, each, replace=False))
        sent = {k: strategy.client_tensors(tensors, client(k)) for k in cohort}
        tensors = strategy.aggregate(tensors, [descend(strategy, sent[k], k, steps(k)) for k in cohort])
    return tensors["x"]


def away(x: np.ndarray) -> float:
    return float(np.linalg.norm(x - OPTIMUM))


def test_scaffold_finds_the_optimum_that_fedavg_misses() -> None:
    """With 20 steps a round each client runs into its own minimum: FedAvg ends near the mean of minima, (1, 7/3).

    The minimum of the sum is (10.5 / 4.5, 21 / 7) = (2.33, 3); FedAvg stays more than 0.5 away, SCAFFOLD gets there.
    """
    assert np.allclose(OPTIMUM, [10.5 / 4.5, 3.0])
    assert away(run(FedAvg(), 300)) > 0.5
    assert away(run(SCAFFOLD(num_clients=3, lr=LR), 300)) < 1e-5


def test_scaffold_finds_it_with_a_part_of_the_clients_and_uneven_steps() -> None:
    scaffold = SCAFFOLD(num_clients=3, lr=LR)
    assert away(run(scaffold, 600, steps=lambda k: 3 + 4 * k, each=2)) < 1e-4
    assert min(away(run(FedAvg(), 600, steps=lambda k: 3 + 4 * k, each=2, seed=s)) for s in range(5)) > 0.1


def test_fedprox_stays_nearer_to_the_optimum_than_fedavg() -> None:
    assert away(run(FedProx(mu=2.0), 300)) < 0.6 * away(run(FedAvg(), 300))


def test_fednova_is_not_pulled_by_whoever_takes_more_steps() -> None:
    """A step is small here, 1/100 of FedAvg's usual: then drift is small and only the counts of steps matter.

    Steps 1, 10 and 30: FedAvg's fixed point weighs client k's gradient by its steps, FedNova's by 1/3 each.
    """
    counts = (1, 10, 30)

    def local(strategy: FedPeft) -> float:
        x = {"x": np.zeros(2, np.float32)}
        for _ in range(3000):
            given = []
            for k in range(3):
                y = x["x"].astype(np.float64)
                for _ in range(counts[k]):
                    y -= 1e-3 * CURVES[k] * (y - MINIMA[k])
                given.append(reply(k, x, list(y), counts[k]))
            x = strategy.aggregate(x, given)
        return away(x["x"])

    assert local(FedNova()) < 0.1
    assert local(FedAvg()) > 1.0


# -- FedProx ----------------------------------------------------------------------------------------------------------


def test_fedprox_orders_its_term_and_averages() -> None:
    strategy = FedProx(mu=0.25)
    assert Orders.read(strategy.client_config(client(0))).prox == 0.25
    x = {"x": np.float32([0])}
    given = [reply(0, x, [2], 1, 1), reply(1, x, [6], 1, 3)]
    assert strategy.aggregate(x, given)["x"].tolist() == [5.0]


@pytest.mark.parametrize("mu", [0.0, -1.0, float("nan"), float("inf")])
def test_fedprox_refuses_a_term_that_is_none(mu: float) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.mu must be"):
        FedProx(mu=mu)


# -- FedNova ----------------------------------------------------------------------------------------------------------


def test_fednova_by_hand() -> None:
    """x = 1. Changes 4 in 2 steps and 12 in 12, with 3 and 1 examples: p = 3/4, 1/4.

    Mean step 3/4 x 2 + 1/4 x 1 = 7/4, mean number of steps 3/2 + 3 = 9/2: x = 1 + 63/8 = 8.875 (FedAvg: 1 + 6 = 7).
    """
    x = {"x": np.float32([1]), "frozen": np.float32([9])}
    given = [reply(0, x, [5], 2, 3), reply(1, x, [13], 12, 1)]
    new = FedNova().aggregate(x, given)
    assert {key: value.tolist() for key, value in new.items()} == {"frozen": [9.0], "x": [8.875]}


def test_fednova_is_fedavg_where_all_take_as_many_steps() -> None:
    rng = np.random.default_rng(3)
    x = {"x": rng.normal(size=8).astype(np.float32)}
    given = [reply(k, x, list(rng.normal(size=8)), 7, 1 + k) for k in range(5)]
    assert np.allclose(FedNova().aggregate(x, given)["x"], FedAvg().aggregate(x, given)["x"], atol=1e-6)


def dishonest(strategy: FedPeft, claim: float | None) -> tuple[float, list[Event]]:
    """Return where four clients that move 0 to 2 in ten steps and one that moves it to 50 and lies take the model."""
    events: list[Event] = []
    strategy.observers = (events.append,)
    x = {"x": np.float32([0])}
    metrics = {} if claim is None else {"train-steps": claim}
    liar = ClientUpdate(client=client(4), tensors={"x": np.float32([50])}, num_examples=1, metrics=metrics, sent=x)
    return float(strategy.aggregate(x, [*(reply(k, x, [2], 10) for k in range(4)), liar])["x"][0]), events


@pytest.mark.parametrize("claim", [0, -3, 2.5, None])
@pytest.mark.parametrize("kind", [FedNova, SCAFFOLD])
def test_no_sound_number_of_steps_costs_the_sender_its_place(claim: float | None, kind: type[Any]) -> None:
    x, events = dishonest(kind(cohort_size=5), claim)
    assert x == 2.0
    (event,) = events
    assert isinstance(event, ClientRejected)
    assert (event.client_id, event.check) == (4, "steps")
    with pytest.raises(WireError, match="4 replies with sound train-steps, 5 are needed"):
        dishonest(kind(cohort_size=5, min_replies=5), claim)


def test_many_claimed_steps_do_not_multiply_what_others_did() -> None:
    """10^12 steps, believed, would make the mean number of steps 2 x 10^11; 101 times the median is not believed.

    100 times is: x = (4/5 x 10 + 1/5 x 1000) (4/5 x 2/10 + 1/5 x 50/1000) = 208 x 0.17 = 35.36.
    """
    x, events = dishonest(FedNova(cohort_size=5), 1e12)
    assert (x, len(events)) == (2.0, 1)
    assert dishonest(FedNova(cohort_size=5), 1010)[0] == 2.0
    assert dishonest(FedNova(cohort_size=5), 1000)[0] == pytest.approx(35.36)
    assert dishonest(SCAFFOLD(cohort_size=5), 1e12)[0] == pytest.approx(58 / 5)


# -- SCAFFOLD ---------------------------------------------------------------------------------------------------------


def test_scaffold_by_hand() -> None:
    """N = 4, rate 1/2, x = 0, two clients: y = -4 after 2 steps, y = 2 after 1. All c are zero, nothing else is sent.

    c_0 = (0 + 4) / (2 x 1/2) = 4, c_1 = (0 - 2) / (1 x 1/2) = -4, c = (4 - 4) / 4 = 0, x = -1.
    Round 2: client 0 is sent c - c_0 = -4; it returns y = -2 after 2 steps: (-1 + 2) / 1 = 1 = g + c - c_0, so that
    c_0' = 4 - 0 + 1 = 5 is its mean gradient; c = 0 + (5 - 4) / 4 = 1/4 and x = -2.
    Round 3: client 1 would be sent 1/4 + 4, client 0 1/4 - 5, one that never took part 1/4.
    """
    strategy = SCAFFOLD(num_clients=4, lr=0.5, cohort_size=2)
    x = {"x": np.float32([0])}
    assert strategy.client_tensors(x, client(0)) is x
    x = strategy.aggregate(x, [reply(0, x, [-4], 2), reply(1, x, [2], 1)])
    assert x["x"].tolist() == [-1.0]
    sent = strategy.client_tensors(x, client(0))
    assert {key: value.tolist() for key, value in sent.items()} == {"x": [-1.0], CONTROL + "x": [-4.0]}
    assert strategy.client_tensors(x, client(2)) is x
    x = strategy.aggregate(x, [reply(0, sent, [-2], 2)])
    assert x["x"].tolist() == [-2.0]
    control = [float(strategy.client_tensors(x, client(k))[CONTROL + "x"][0]) for k in range(3)]
    assert control == [-4.75, 4.25, 0.25]


def test_control_variates_are_float32_and_c_stays_their_mean() -> None:
    rng = np.random.default_rng(5)
    strategy = SCAFFOLD(num_clients=5, lr=0.1)
    x = {"x": np.zeros(6, np.float32)}
    for server_round in range(6):
        asked = sorted(rng.choice(5, 3, replace=False).tolist())
        sent = {k: strategy.client_tensors(x, client(k)) for k in asked}
        assert all(value.dtype == np.float32 for one in sent.values() for value in one.values())
        x = strategy.aggregate(x, [reply(k, sent[k], list(rng.normal(size=6)), 3 + server_round) for k in asked])
    state = strategy.state()
    own = [np.asarray(value, np.float64) for key, value in state.items() if key.startswith("client-")]
    assert np.allclose(state["mean.x"], sum(own) / 5, atol=1e-6)


def test_a_servers_learning_rate_shortens_the_step() -> None:
    strategy = SCAFFOLD(num_clients=2, lr=0.5, server_lr=0.5)
    x = {"x": np.float32([2])}
    assert strategy.aggregate(x, [reply(0, x, [4], 1, 90), reply(1, x, [8], 1, 1)])["x"].tolist() == [4.0]


def test_scaffold_refuses_clients_that_do_not_train_by_plain_sgd() -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.build(cfg.compose(["strategy=scaffold", "client.weight_decay=0.1"])["strategy"])
    told = "\n".join(caught.value.problems)
    assert "client.optimizer=adamw (set client.optimizer=sgd)" in told
    assert "client.weight_decay=0.1 (set client.weight_decay=0)" in told
    built = cfg.build(cfg.compose(["strategy=scaffold", "client.optimizer=sgd", "client.lr=0.3"])["strategy"])
    assert (built.lr, built.num_clients) == (0.3, 20)
