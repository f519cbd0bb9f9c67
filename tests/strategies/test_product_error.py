"""The error of an aggregation in the products, by hand and against dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from worlds import change, update, weighted_change, world

from fedpeft.core.types import ClientInfo, ClientUpdate
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.ffa_lora import FFALoRA
from fedpeft.strategies.flora import FLoRA
from fedpeft.strategies.product_error import product_error
from fedpeft.strategies.rolora import RoLoRA

A, B = "m.lora_A.weight", "m.lora_B.weight"


def test_fedavgs_error_is_the_covariance_of_the_factors() -> None:
    """s = 2; client 0 has A = 1, B = 2, client 1 A = 3, B = 4, equal weights.

    The mean product is 2 (2 + 12) / 2 = 14, FedAvg's is 2 x 3 x 2 = 12: the error is 2 / 14.
    """
    before = {A: np.float32([[1]]), B: np.float32([[1]])}
    replies = [
        ClientUpdate(
            client=ClientInfo(client_id=i, node_id=i, num_examples=5, rank=1, scaling=2.0),
            tensors={A: np.float32([[a]]), B: np.float32([[b]])},
            num_examples=5,
            sent=before,
        )
        for i, (a, b) in enumerate([(1, 2), (3, 4)])
    ]
    after = FedAvg().aggregate(before, replies)
    assert product_error(before, replies, after, 2.0) == pytest.approx(2 / 14)


@pytest.mark.parametrize("kind", [FedAvg, FFALoRA, RoLoRA, FLoRA])
def test_it_is_the_distance_of_the_dense_changes(kind: type[FedPeft]) -> None:
    here = world(kind)
    strategy = kind()
    here.enter(strategy)
    replies = [update(strategy, here, client_id) for client_id in range(4)]
    after = strategy.model_tensors(strategy.aggregate(here.tensors, replies))
    got, wanted = change(after, here.ranks.scaling), weighted_change(here, replies)
    modules = [key for key in wanted if not key.endswith(".weight")]
    wrong = math.sqrt(sum(np.sum((got[m] - wanted[m]) ** 2) for m in modules))
    whole = math.sqrt(sum(np.sum(wanted[m] ** 2) for m in modules))
    error = product_error(here.tensors, replies, after, here.ranks.scaling)
    assert error == pytest.approx(wrong / whole, abs=1e-7)
    assert (error < 1e-5) == (kind is not FedAvg)


@pytest.mark.parametrize(
    ("name", "factor", "change_by_hand"),
    [("lora_B", [[1], [0]], [[4, 0], [0, 0]]), ("lora_A", [[0, 1]], [[0, 12], [0, 0]])],
)
def test_a_factor_that_a_smaller_client_was_not_sent_is_the_first_directions_of_the_global_one(
    name: str, factor: list[list[float]], change_by_hand: list[list[float]]
) -> None:
    """Rank 1, s = 4, beside a global A = I and B = [[3, 9], [0, 9]]: 4 (1, 0)^T (1, 0), and 4 (3, 0)^T (0, 1)."""
    before = {A: np.eye(2, dtype=np.float32), B: np.float32([[3, 9], [0, 9]])}
    client = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=1, scaling=4.0)
    returned = {f"m.{name}.weight": np.float32(factor)}
    reply = ClientUpdate(client=client, tensors=returned, num_examples=1, sent=returned)
    after = {A: np.eye(2, dtype=np.float32), B: np.float32(change_by_hand) / 2}
    assert product_error(before, [reply], after, 2.0) == pytest.approx(0, abs=1e-7)


def test_methods_without_factors_have_none() -> None:
    assert product_error({"x": np.zeros(2)}, [], {"x": np.zeros(2)}, 1.0) is None
