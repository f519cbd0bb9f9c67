"""FFA-LoRA, RoLoRA and FedSA-LoRA: what travels, what trains, and the numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import HEAD, change, update, world

from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedsa_lora import FedSALoRA
from fedpeft.strategies.ffa_lora import FFALoRA
from fedpeft.strategies.rolora import RoLoRA

A, B = "m.lora_A.weight", "m.lora_B.weight"
GLOBAL = {A: np.float32([[1, 2]]), B: np.float32([[0], [0]])}


def from_client(strategy: FedPeft, client_id: int, num_examples: int, **trained: list[list[float]]) -> ClientUpdate:
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples, rank=1)
    sent = dict(strategy.client_tensors(GLOBAL, client))
    tensors: Tensors = {{"A": A, "B": B}[name]: np.float32(value) for name, value in trained.items()}
    assert sorted(tensors) == Orders.read(strategy.client_config(client)).returned(sent)
    return ClientUpdate(client=client, tensors=tensors, num_examples=num_examples, sent=sent)


def test_ffa_averages_b_over_one_frozen_a() -> None:
    """A = [1 2] for all; B_1 = [4 0]^T with 1 example, B_2 = [0 8]^T with 3, p = 1/4, 3/4.

    B = [1 6]^T, and B A = [[1 2], [6 12]] = 1/4 [[4 8], [0 0]] + 3/4 [[0 0], [8 16]].
    """
    strategy = FFALoRA()
    replies = [from_client(strategy, 0, 1, B=[[4], [0]]), from_client(strategy, 1, 3, B=[[0], [8]])]
    after = strategy.aggregate(GLOBAL, replies)
    assert after[A].tobytes() == GLOBAL[A].tobytes()
    assert (after[B] @ after[A]).tolist() == [[1, 2], [6, 12]]


def test_rolora_trains_b_then_a() -> None:
    """Round 1 as FFA-LoRA: B = [1 6]^T. Round 2 with B frozen: A_1 = [4 0], A_2 = [0 4], A = 1/4 [4 0] + 3/4 [0 4].

    B A = [1 6]^T [1 3] = [[1 3], [6 18]].
    """
    strategy = RoLoRA()
    assert strategy.view.server_round == 1
    first = [from_client(strategy, 0, 1, B=[[4], [0]]), from_client(strategy, 1, 3, B=[[0], [8]])]
    middle = strategy.aggregate(GLOBAL, first)
    here = world(RoLoRA)
    here.enter(strategy, 2)
    second = [from_client(strategy, 0, 1, A=[[4, 0]]), from_client(strategy, 1, 3, A=[[0, 4]])]
    after = strategy.aggregate(middle, second)
    assert after[B].tobytes() == middle[B].tobytes()
    assert (after[B] @ after[A]).tolist() == [[1, 3], [6, 18]]


@pytest.mark.parametrize("server_round", [1, 2, 3, 4])
def test_rolora_moves_one_factor_a_round(server_round: int) -> None:
    strategy, here = RoLoRA(), world(RoLoRA)
    here.enter(strategy, server_round)
    after = strategy.aggregate(here.tensors, [update(strategy, here, client_id) for client_id in range(3)])
    moved = {key.split(".")[-2] for key in after if after[key].tobytes() != here.tensors[key].tobytes()}
    assert moved == {"lora_B" if server_round % 2 else "lora_A", "classifier"}


def test_fedsa_shares_a_and_leaves_b_to_the_client() -> None:
    """A = 1/4 [4 0] + 3/4 [0 4] = [1 3]; the server's B stays zero, so its own model is the base."""
    strategy = FedSALoRA()
    replies = [from_client(strategy, 0, 1, A=[[4, 0]]), from_client(strategy, 1, 3, A=[[0, 4]])]
    after = strategy.aggregate(GLOBAL, replies)
    assert after[A].tolist() == [[1, 3]]
    assert not change(after, scaling=2.0)["m"].any()
    assert Orders.read(strategy.client_config(replies[0].client)).keep == ("lora_B",)


@pytest.mark.parametrize(("kind", "absent"), [(FFALoRA, "lora_A"), (FedSALoRA, "lora_B")])
def test_half_of_the_factors_never_travels(kind: type[FedPeft], absent: str) -> None:
    strategy, here = kind(), world(kind)
    sent = strategy.client_tensors(here.tensors, here.client(0))
    assert {key for key in here.tensors if key not in sent} == {k for k in here.tensors if absent in k.split(".")}
    assert HEAD in sent
