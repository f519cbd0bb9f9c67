"""FedEx-LoRA's residual, by hand, over rounds, and its rank."""

from __future__ import annotations

import numpy as np
from factor_updates import HEAD, A, B, close, enter, mean_product, product, random_updates, tensors, update

from fedpeft.core.orders import MERGE
from fedpeft.strategies.fedex_lora import FedExLoRA


def test_the_residual_is_what_the_product_of_the_means_lacks() -> None:
    """A = 1, 3 and B = 2, 4 at s = 2: means 2 and 3, product 2 x 6 = 12, mean of products 2 (2 + 12) / 2 = 14.

    The residual 2 joins the base. In a second round in which nobody trains it stays 2.
    """
    strategy = FedExLoRA()
    enter(strategy, {1: 2.0})
    updates = [update(0, 1, 2.0, tensors([[1]], [[2]], 1)), update(1, 1, 2.0, tensors([[3]], [[4]], 5))]
    after = strategy.aggregate(tensors([[0]], [[0]]), updates)
    assert (after[A].item(), after[B].item(), after[HEAD].item()) == (2.0, 3.0, 3.0)
    model = strategy.model_tensors(after)
    assert np.isclose((model[MERGE + B] @ model[MERGE + A]).item(), 2.0)
    assert np.isclose(product(model, 2.0).item(), 14.0)
    idle = [update(i, 1, 2.0, {key: after[key] for key in (A, B, HEAD)}) for i in range(2)]
    again = strategy.model_tensors(strategy.aggregate(after, idle))
    assert np.isclose(product(again, 2.0).item(), 14.0)


def test_residuals_add_up_over_rounds() -> None:
    """The base after round t holds every residual before it: model_t = residuals_(t-1) + mean of the products of t."""
    strategy, residuals = FedExLoRA(), np.zeros((9, 8))
    for server_round in (1, 2, 3):
        enter(strategy, {2: 3.0}, server_round)
        updates = [
            update(i, 1 + i, 3.0, random_updates({2: 3.0}, 9, 8, seed=10 * server_round + i)[0].tensors)
            for i in range(3)
        ]
        after = strategy.aggregate(tensors(np.zeros((2, 8)), np.zeros((9, 2))), updates)
        wanted = residuals + mean_product(updates)
        assert close(product(strategy.model_tensors(after), 3.0), wanted)
        residuals = wanted - 3.0 * np.float64(after[B]) @ np.float64(after[A])
        assert strategy.state()[MERGE + A].shape[0] <= min(8, server_round * (3 + 1) * 2)


def test_clients_that_agree_leave_no_residual() -> None:
    strategy = FedExLoRA()
    enter(strategy, {2: 3.0})
    same = random_updates({2: 3.0}, 5, 4)[0].tensors
    after = strategy.aggregate(
        tensors(np.zeros((2, 4)), np.zeros((5, 2))), [update(i, 1 + i, 3.0, same) for i in (0, 1)]
    )
    assert strategy.state() == {}
    assert all(np.array_equal(after[key], same[key]) for key in same)
