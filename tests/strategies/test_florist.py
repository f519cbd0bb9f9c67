"""FLoRIST's threshold: by hand, equal to FLoRA without one, exact for mixed ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factor_updates import HEAD, A, B, close, enter, mean_product, product, random_updates, tensors, update
from worlds import World, change, relative_error, weighted_change, world
from worlds import update as update_in

from fedpeft.core.errors import ConfigError
from fedpeft.core.orders import MERGE
from fedpeft.core.types import ClientInfo
from fedpeft.strategies.flora import FLoRA
from fedpeft.strategies.florist import FLoRIST

SCALINGS = {1: 6.0, 2: 3.0, 3: 2.0}


def diagonal(energy: float) -> tuple[FLoRIST, dict[str, np.ndarray]]:
    """One client gave diag(3, 2, 1); the global rank is 1, at scaling 1."""
    strategy = FLoRIST(energy=energy)
    enter(strategy, {1: 1.0})
    returned = update(0, 1, 1.0, tensors(np.eye(3), np.diag([3, 2, 1]), 4))
    return strategy, strategy.aggregate(tensors(np.zeros((1, 3)), np.zeros((3, 1))), [returned])


@pytest.mark.parametrize(("energy", "kept"), [(0.6, 1), (0.9, 2), (0.93, 3), (1, 3)])
def test_directions_are_kept_by_their_energy(energy: float, kept: int) -> None:
    """Squares 9, 4, 1 of 14: the first holds 0.643 of the energy, the first two 0.929, all three 1."""
    strategy, after = diagonal(energy)
    model = strategy.model_tensors(after)
    assert np.allclose(product(model, 1.0), np.diag([3, 2, 1][:kept] + [0] * (3 - kept)), atol=1e-6)
    assert np.allclose(after[B], [[3], [0], [0]], atol=1e-6)
    assert after[HEAD].tolist() == [4.0]
    assert (MERGE + A in model) == (kept > 1)
    assert kept == 1 or model[MERGE + A].shape[0] == kept - 1


def test_with_all_energy_the_product_is_that_of_flora() -> None:
    updates = random_updates(SCALINGS, 7, 6)
    start = tensors(np.zeros((3, 6)), np.zeros((7, 3)))
    models = []
    for strategy in (FLoRIST(energy=1.0), FLoRA()):
        enter(strategy, SCALINGS)
        models.append(product(strategy.model_tensors(strategy.aggregate(start, updates)), 2.0))
    assert close(models[0], models[1])
    assert close(models[0], mean_product(updates))


@pytest.mark.parametrize("mixed", [False, True])
def test_three_rounds_are_exact_with_all_energy(mixed: bool) -> None:
    """sum_k p_k of the clients' models, each with what it merged; p grows beyond every client's rank."""
    here, strategy = world(FLoRIST, mixed=mixed), FLoRIST(energy=1.0)
    now = here.tensors
    for server_round in (1, 2, 3):
        here = World(tensors=now, ranks=here.ranks, mixed=mixed)
        here.enter(strategy, server_round)
        sent_back = [update_in(strategy, here, i, server_round=server_round) for i in range(5)]
        now = strategy.aggregate(now, sent_back)
        got = change(strategy.model_tensors(now), here.ranks.scaling)
        assert relative_error(got, weighted_change(here, sent_back)) < 1e-5
    assert strategy.state()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_client_has_the_whole_model_and_no_more_than_its_directions(rank: int) -> None:
    """Ranks 1 + 2 + 3 make p = 6; a client of rank r gets r of them to train and 6 - r to merge: p (m + n) floats."""
    strategy = FLoRIST(energy=1.0)
    enter(strategy, SCALINGS)
    updates = random_updates(SCALINGS, 8, 7)
    after = strategy.aggregate(tensors(np.zeros((3, 7)), np.zeros((8, 3))), updates)
    sent = strategy.client_tensors(
        after, ClientInfo(client_id=0, node_id=0, num_examples=1, rank=rank, scaling=SCALINGS[rank])
    )
    assert close(product(dict(sent), SCALINGS[rank]), mean_product(updates))
    assert sum(value.size for key, value in sent.items() if key != HEAD) == 6 * (8 + 7)


def test_directions_beyond_those_kept_can_train_and_are_not_sent_to_merge() -> None:
    """Three equal clients of rank 1 make p = 1 of a global rank 3, whatever rounding leaves of the other two.

    B has columns of exact zeros there, beside rows of A that are orthonormal; a client of rank 1 has nothing to merge.
    """
    rng = np.random.default_rng(0)
    trained = tensors(rng.normal(size=(1, 7)), rng.normal(size=(8, 1)))
    strategy = FLoRIST(energy=1.0)
    enter(strategy, SCALINGS)
    after = strategy.aggregate(
        tensors(np.zeros((3, 7)), np.zeros((8, 3))), [update(i, 1 + i, 6.0, trained) for i in range(3)]
    )
    assert after[B][:, 0].any()
    assert not after[B][:, 1:].any()
    assert np.allclose(after[A] @ after[A].T, np.eye(3), atol=1e-6)
    small = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=1, scaling=6.0)
    assert set(strategy.client_tensors(after, small)) == {A, B, HEAD}
    assert close(product(dict(strategy.client_tensors(after, small)), 6.0), product(after, 2.0))


def test_clients_that_train_nothing_keep_the_model() -> None:
    strategy, after = diagonal(1.0)
    before = product(strategy.model_tensors(after), 1.0)
    enter(strategy, {1: 1.0}, server_round=2)
    info = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=1, scaling=1.0)
    sent = strategy.client_tensors(after, info)
    idle = {key: sent[key] for key in (A, B, HEAD)}
    updates = [replace(update(i, 1 + i, 1.0, idle), sent=dict(sent)) for i in range(3)]
    assert close(product(strategy.model_tensors(strategy.aggregate(after, updates)), 1.0), before)


@pytest.mark.parametrize("energy", [0, -1, 1.01, float("nan")])
def test_an_energy_out_of_range_is_refused(energy: float) -> None:
    with pytest.raises(ConfigError, match=r"energy must be in \(0, 1\].*set strategy.energy"):
        FLoRIST(energy=energy)
