"""FLoRA's stack, by hand, and what it starts anew with."""

from __future__ import annotations

import numpy as np
import pytest
from factor_updates import HEAD, A, B, close, enter, mean_product, product, random_updates, tensors, update

from fedpeft.core.errors import WireError
from fedpeft.core.orders import MERGE
from fedpeft.core.types import ClientInfo, ClientUpdate
from fedpeft.strategies.flora import FLoRA

SCALINGS = {1: 4.0, 2: 2.0}


def clients(size: int = 2) -> list:
    """Two clients, p = 1/4 and 3/4, of rank 1 and 2, on a size x size weight."""
    one = np.zeros((size, 1)), np.zeros((1, size))
    two = np.zeros((size, 2)), np.zeros((2, size))
    one[0][0, 0], one[1][0, :2] = 1, (1, 2)
    two[0][:2], two[1][:, :2] = [[0, 1], [1, 0]], np.eye(2)
    return [update(0, 1, 4.0, tensors(one[1], one[0], 8)), update(1, 3, 2.0, tensors(two[1], two[0], 4))]


def test_products_of_unequal_ranks_and_scalings_are_summed() -> None:
    """4 (1, 0)^T (1, 2) / 4 = [[1, 2], [0, 0]] and 2 [[0, 1], [1, 0]] 3/4 = [[0, 1.5], [1.5, 0]]: [[1, 3.5], [1.5, 0]].

    The stack has 3 columns, a 2 x 2 weight needs 2. The head is 8/4 + 4 x 3/4 = 5.
    """
    strategy = FLoRA()
    enter(strategy, SCALINGS)
    start = tensors(np.ones((2, 2)), np.ones((2, 2)))
    after = strategy.aggregate(start, clients())
    model = strategy.model_tensors(after)
    assert np.allclose(product(model, 2.0), [[1, 3.5], [1.5, 0]], atol=1e-6)
    assert model[MERGE + A].shape == (2, 2)
    assert after[HEAD].tolist() == [5.0]
    assert not after[B].any()


def test_a_stack_is_the_factors_themselves_while_it_is_small() -> None:
    """A 4 x 4 weight takes 3 columns as they are: s_k B_k side by side, p_k A_k one below the other."""
    strategy = FLoRA()
    enter(strategy, SCALINGS)
    strategy.aggregate(tensors(np.ones((2, 4)), np.zeros((4, 2))), clients(4))
    state = strategy.state()
    assert state[MERGE + B].tolist() == [[4, 0, 2], [0, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert state[MERGE + A].tolist() == [[0.25, 0.5, 0, 0], [0.75, 0, 0, 0], [0, 0.75, 0, 0]]


def test_rounds_add_up_and_never_take_more_columns_than_the_weight_needs() -> None:
    strategy, wanted = FLoRA(), np.zeros((6, 5))
    start = tensors(np.zeros((2, 5)), np.zeros((6, 2)))
    for server_round in range(1, 6):
        enter(strategy, SCALINGS, server_round)
        updates = random_updates(SCALINGS, 6, 5, seed=server_round)
        after = strategy.aggregate(start, updates)
        wanted = wanted + mean_product(updates)
        assert close(product(strategy.model_tensors(after), 2.0), wanted)
        assert strategy.state()[MERGE + A].shape[0] == min(3 * server_round, 5)


def test_new_factors_are_drawn_as_peft_draws_them_and_can_be_drawn_again() -> None:
    """|A| <= 1 / sqrt(100) = 0.1, of standard deviation 0.1 / sqrt(3); another one in each round and for each seed."""
    drawn = {}
    for seed, server_round in ((0, 1), (0, 2), (1, 1)):
        strategy = FLoRA(seed=seed)
        enter(strategy, SCALINGS, server_round)
        start = tensors(np.zeros((2, 100)), np.zeros((4, 2)))
        drawn[seed, server_round] = strategy.aggregate(start, random_updates(SCALINGS, 4, 100))[A]
        assert np.array_equal(drawn[seed, server_round], strategy.aggregate(start, random_updates(SCALINGS, 4, 100))[A])
    first = drawn[0, 1]
    assert np.abs(first).max() <= 0.1
    assert first.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    assert not np.array_equal(first, drawn[0, 2])
    assert not np.array_equal(first, drawn[1, 1])


def test_every_module_draws_factors_of_its_own() -> None:
    """Two layers alike in shape and in what their clients sent differ in what they start anew with."""
    strategy = FLoRA()
    enter(strategy, SCALINGS)
    two = {
        f"{layer}.{key}": value for layer in "xy" for key, value in tensors(np.ones((2, 4)), np.zeros((4, 2))).items()
    }
    client = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=2, scaling=2.0)
    after = strategy.aggregate(two, [ClientUpdate(client=client, tensors=two, num_examples=1, sent=two)])
    assert not np.array_equal(after[f"x.{A}"], after[f"y.{A}"])


def test_clients_share_the_first_rows_and_all_that_was_aggregated() -> None:
    strategy = FLoRA()
    enter(strategy, SCALINGS)
    after = strategy.aggregate(tensors(np.ones((2, 4)), np.zeros((4, 2))), clients(4))
    small = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=1, scaling=4.0)
    sent = strategy.client_tensors(after, small)
    assert np.array_equal(sent[A], after[A][:1])
    assert sent[B].shape == (4, 1)
    assert np.array_equal(sent[MERGE + A], strategy.state()[MERGE + A])
    assert not strategy.client_tensors(after, small).keys() ^ {A, B, HEAD, MERGE + A, MERGE + B}


def test_a_sum_that_does_not_fit_float32_leaves_everything_as_it_was() -> None:
    """Two stacks of 1e25 x 1e25 are finite factors, but compressed their singular value 1e50 is not."""
    strategy = FLoRA()
    enter(strategy, SCALINGS)
    start = tensors(np.zeros((2, 2)), np.zeros((2, 2)))
    strategy.aggregate(start, clients())
    before = strategy.state()
    huge = [update(0, 1, 2.0, tensors(np.full((2, 2), 1e25), np.full((2, 2), 1e25)))]
    with pytest.raises(WireError, match="change of x does not fit float32"):
        strategy.aggregate(start, huge)
    assert all(np.array_equal(strategy.state()[key], before[key]) for key in before)
