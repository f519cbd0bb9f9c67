"""HetLoRA's padded sums and pruned ranks, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from factor_updates import HEAD, A, B, enter, product, tensors, update

from fedpeft.core.errors import ConfigError
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo, ClientUpdate
from fedpeft.strategies.hetlora import HetLoRA

SCALINGS = {1: 2.0, 2: 1.0}
START = tensors([[7, 7], [7, 7]], [[9, 9], [9, 9]])


def strategy_with(**settings: object) -> HetLoRA:
    strategy = HetLoRA(**settings)
    enter(strategy, SCALINGS)
    return strategy


def wide(num_examples: int = 3) -> ClientUpdate:
    """Rank 2, scaling 1: |diag(3, 4)| = 5."""
    return update(0, num_examples, 1.0, tensors(np.eye(2), [[3, 0], [0, 4]], 4))


def narrow(num_examples: int = 1) -> ClientUpdate:
    """Rank 1, scaling 2: |2 (2.5, 0)^T (1, 0)| = 5."""
    return update(1, num_examples, 2.0, tensors([[1, 0]], [[2.5], [0]], 8))


def test_padded_factors_are_weighted_by_the_size_of_their_products() -> None:
    """Norms 5 and 5 weigh 1/2 each, although examples are 3 and 1; the head is (3 x 4 + 8) / 4 = 5.

    A: ((1, 0) + (1, 0)) / 2 and ((0, 1) + 0) / 2. B: (3 + 2 x 2.5) / 2 = 4 and 4 / 2 = 2.
    """
    after = strategy_with().aggregate(START, [wide(), narrow()])
    assert np.allclose(after[A], [[1, 0], [0, 0.5]])
    assert np.allclose(after[B], [[4, 0], [0, 2]])
    assert after[HEAD].tolist() == [5.0]


def test_weights_can_be_the_examples() -> None:
    """3/4 and 1/4: B = 3 x 3/4 + 5 x 1/4 = 3.5, and 4 x 3/4 = 3 where one is padded; A = 1 and 3/4."""
    after = strategy_with(weighting="examples").aggregate(START, [wide(), narrow()])
    assert np.allclose(after[A], [[1, 0], [0, 0.75]])
    assert np.allclose(after[B], [[3.5, 0], [0, 3]])


def test_rowwise_means_are_over_those_who_have_the_direction() -> None:
    after = strategy_with(rowwise=True).aggregate(START, [wide(), narrow()])
    assert np.allclose(after[A], np.eye(2))
    assert np.allclose(after[B], [[4, 0], [0, 4]])


@pytest.mark.parametrize("rowwise", [False, True])
def test_directions_that_nobody_has_stay_as_they_were(rowwise: bool) -> None:
    after = strategy_with(rowwise=rowwise).aggregate(START, [narrow()])
    assert np.allclose(after[A], [[1, 0], [7, 7]])
    assert np.allclose(after[B], [[5, 9], [0, 9]])


def test_products_of_zero_are_weighted_by_examples() -> None:
    """Before anybody trained B is zero everywhere: A = (1, 0) x 3/4 + (5, 0) x 1/4 = (2, 0)."""
    zero = [update(i, n, 1.0, tensors(a, np.zeros((2, 2)))) for i, n, a in ((0, 3, np.eye(2)), (1, 1, 5 * np.eye(2)))]
    assert np.allclose(strategy_with().aggregate(START, zero)[A], 2 * np.eye(2))


def test_a_client_gets_its_first_directions_in_the_global_product() -> None:
    strategy = strategy_with()
    after = strategy.aggregate(START, [wide(), narrow()])
    sent = strategy.client_tensors(after, narrow().client)
    assert np.allclose(sent[A], [[1, 0]])
    assert np.allclose(product(dict(sent), 2.0), [[4, 0], [0, 0]])


def after_training(tail: float) -> ClientUpdate:
    """Rank 2, received with a tail of |B[:, 1:]| |A[1:]| = 4 x 1, and came back with this one."""
    return update(5, 1, 1.0, tensors(np.eye(2), [[3, 0], [0, tail]]), sent=tensors(np.eye(2), [[3, 0], [0, 4]]))


@pytest.mark.parametrize(("tail", "left"), [(3.9, 1), (4.0, 2), (4.1, 2)])
def test_a_client_whose_tail_shrank_loses_it(tail: float, left: int) -> None:
    """gamma 0.5 of rank 2: the tail is the second direction. Its rank becomes 1, with that rank's scaling 2."""
    strategy = strategy_with(gamma=0.5)
    strategy.aggregate(START, [after_training(tail)])
    client = after_training(tail).client
    orders = Orders.read(strategy.client_config(client))
    assert strategy.client_tensors(START, client)[A].shape == (left, 2)
    assert strategy.as_pruned(client).rank == left
    assert (orders.rank, orders.scaling) == ((1, 2.0) if left == 1 else (0, 0.0))
    other = ClientInfo(client_id=6, node_id=6, num_examples=1, rank=2, scaling=1.0)
    assert strategy.as_pruned(other).rank == 2


def test_a_pruned_client_counts_with_the_scaling_of_what_it_has_left() -> None:
    """Rank 1 at scaling 2 though its device's plan says rank 2 at 1: B = 2 x 2.5 = 5 in the global model."""
    strategy = strategy_with(gamma=0.5)
    strategy.aggregate(START, [after_training(3.9)])
    left = ClientUpdate(
        client=after_training(3.9).client, tensors=narrow().tensors, num_examples=1, sent=narrow().tensors
    )
    assert np.allclose(strategy.aggregate(START, [left])[B], [[5, 9], [0, 9]])


def test_pruned_ranks_survive_a_checkpoint() -> None:
    strategy, other = strategy_with(gamma=0.5), strategy_with(gamma=0.5)
    strategy.aggregate(START, [after_training(3.9)])
    other.load_state(strategy.state())
    assert other.as_pruned(after_training(3.9).client).rank == 1


@pytest.mark.parametrize(
    ("rank", "gamma", "min_rank", "tail"),
    [(8, 0.9, 1, 7), (8, 0.5, 6, 6), (1, 0.5, 1, 0), (8, 1.0, 1, 0), (4, 0.5, 6, 0), (50, 0.58, 1, 29)],
)
def test_the_tail_is_what_clients_are_told_to_shrink(rank: int, gamma: float, min_rank: int, tail: int) -> None:
    """floor(0.9 x 8) = 7, 0.58 x 50 = 29; never below the smallest rank; 0, no tail, where there is nothing to lose."""
    strategy = strategy_with(gamma=gamma, min_rank=min_rank, tail_weight=0.25)
    client = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=rank, scaling=1.0)
    orders = Orders.read(strategy.client_config(client))
    assert (orders.tail_rank, orders.tail_weight) == (tail, 0.25 if tail else 0.0)


def test_all_settings_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        HetLoRA(weighting="size", rowwise="yes", gamma=0, tail_weight=-1, min_rank=0)
    assert [line.split()[0] for line in caught.value.problems] == [
        f"strategy.{name}" for name in ("weighting", "rowwise", "gamma", "tail_weight", "min_rank")
    ]
