"""TIES and task arithmetic: by hand, against dense products, and where there are no factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from worlds import HEAD, SHAPES, change, relative_error, update, weighted_change, world

from fedpeft.core.dense import plain_pairs, product, svd_of
from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import Factors
from fedpeft.core.merging import ties
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.task_arithmetic import TaskArithmetic
from fedpeft.strategies.ties import TIES
from fedpeft.strategies.view import View

A, B = "m.lora_A.weight", "m.lora_B.weight"
ZERO = {A: np.float32([[1, 0], [0, 1]]), B: np.zeros((2, 2), np.float32), HEAD: np.float32([0, 0])}


def reply(client_id: int, num_examples: int, dense: list[list[float]], head: list[float]) -> ClientUpdate:
    """A client of scaling 2 whose change 2 B A is ``dense``: A is the identity, B half of it."""
    tensors = {A: ZERO[A], B: np.float32(dense) / 2, HEAD: np.float32(head)}
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples, rank=2, scaling=2.0)
    return ClientUpdate(client=client, tensors=tensors, num_examples=num_examples, sent=ZERO)


REPLIES = [reply(0, 1, [[8, -1], [4, 0]], [4, 0]), reply(1, 3, [[4, 1], [-8, 2]], [0, 8])]


def merged(strategy: FedPeft, replies: list[ClientUpdate]) -> tuple[np.ndarray, Tensors]:
    strategy.view = View(ranks=RankPlan(rank=2, default=2, scaling_for=lambda rank: 2.0))
    after = strategy.aggregate(ZERO, replies)
    return change(after, 2.0)["m"], after


def test_ties_by_hand() -> None:
    """Density 1/2 keeps two of four entries: [[8, 0], [4, 0]] with weight 1 and [[4, 0], [-8, 0]] with weight 3.

    Signs: 8 + 12 > 0, 4 - 24 < 0. Entry (0, 0): both agree, (8 + 3 * 4) / 4 = 5. Entry (1, 0): client 1 alone, -8.
    Scale 1.5: [[7.5, 0], [-12, 0]]. The head is averaged: [1, 6].
    """
    dense, after = merged(TIES(density=0.5, scale=1.5), REPLIES)
    assert dense == pytest.approx(np.float64([[7.5, 0], [-12, 0]]), abs=1e-5)
    assert after[HEAD].tolist() == [1, 6]


def test_task_arithmetic_by_hand() -> None:
    """Mean [[5, 0.5], [-5, 1.5]], twice: [[10, 1], [-10, 3]]."""
    dense, after = merged(TaskArithmetic(scale=2.0), REPLIES)
    assert dense == pytest.approx(np.float64([[10, 1], [-10, 3]]), abs=1e-5)
    assert after[HEAD].tolist() == [1, 6]


def test_changes_are_those_from_the_global_model() -> None:
    """From B = 1/2 (product [[1, 0], [0, 1]]) all clients go to [[3, 0], [0, 1]]: the change is 2 at one entry.

    Half of that, from where the model stood: [[2, 0], [0, 1]]. A rule on whole products would give [[1.5, 0], [0, .5]].
    """
    start = {**ZERO, B: np.eye(2, dtype=np.float32) / 2}
    replies = [reply(k, 1, [[3, 0], [0, 1]], [0, 0]) for k in (0, 1)]
    for strategy in (TaskArithmetic(scale=0.5), TIES(density=0.25, scale=0.5)):
        strategy.view = View(ranks=RankPlan(rank=2, default=2, scaling_for=lambda rank: 2.0))
        after = change(strategy.aggregate(start, replies), 2.0)["m"]
        assert after == pytest.approx(np.float64([[2, 0], [0, 1]]), abs=1e-6)


def test_task_arithmetic_misses_what_its_rank_cannot_hold_and_no_more() -> None:
    """At scale 1 the model is the best of rank 3 for sum_k p_k s_k B_k A_k: the error is the tail's energy."""
    here = world(TaskArithmetic)
    strategy = TaskArithmetic()
    here.enter(strategy)
    replies = [update(strategy, here, client_id) for client_id in range(5)]
    got, wanted = change(strategy.aggregate(here.tensors, replies), here.ranks.scaling), weighted_change(here, replies)
    for module in SHAPES:
        tail = np.linalg.svd(wanted[module], compute_uv=False)[3:]
        assert tail[0] > 0.005
        assert np.linalg.norm(got[module] - wanted[module]) == pytest.approx(np.linalg.norm(tail), rel=1e-5)
    assert relative_error({HEAD: got[HEAD]}, {HEAD: wanted[HEAD]}) < 1e-6


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties_is_that_of_the_dense_changes_cut_to_the_rank(density: float) -> None:
    here = world(TIES)
    strategy = TIES(density=density)
    here.enter(strategy)
    replies = [update(strategy, here, client_id) for client_id in range(5)]
    got = change(strategy.aggregate(here.tensors, replies), here.ranks.scaling)
    start = change(here.tensors, here.ranks.scaling)
    for module in SHAPES:
        changes = [change(one.tensors, one.client.scaling)[module] - start[module] for one in replies]
        whole = start[module] + ties(changes, [one.num_examples for one in replies], density)
        u, s, vt = np.linalg.svd(whole, full_matrices=False)
        assert got[module] == pytest.approx((u[:, :3] * s[:3]) @ vt[:3], abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("kind", [TIES, TaskArithmetic])
def test_methods_without_factors_are_merged_tensor_by_tensor(kind: Any, scale: float) -> None:
    """From (1, 1): client 0 (1 example) goes to (9, 1), client 1 (3 examples) to (5, 4).

    Task arithmetic: mean change (5, 2.25). TIES at density 1/2 keeps 8 and 4, both in the first place: (5, 0).
    """
    start = {"x.bias": np.float32([1, 1])}
    replies = [
        ClientUpdate(
            client=ClientInfo(client_id=k, node_id=k, num_examples=n),
            tensors={"x.bias": np.float32(value)},
            num_examples=n,
            sent=start,
        )
        for k, n, value in ((0, 1, [9, 1]), (1, 3, [5, 4]))
    ]
    strategy = kind(scale=scale, **({"density": 0.5} if kind is TIES else {}))
    moved = np.float64([5, 0] if kind is TIES else [5, 2.25])
    assert strategy.aggregate(start, replies)["x.bias"].tolist() == (1 + scale * moved).tolist()


def test_factors_with_a_companion_are_no_products() -> None:
    tensors = {**ZERO, "m.lora_magnitude_vector.weight": np.ones(2, np.float32)}
    assert plain_pairs(tensors) == ()
    assert [pair.module for pair in plain_pairs(ZERO)] == ["m"]
    flat = {"c.lora_A.weight": np.ones((2, 3, 1, 1)), "c.lora_B.weight": np.ones((4, 2, 1, 1))}
    assert plain_pairs(flat) == ()


def test_dense_decompositions_are_as_those_of_factors() -> None:
    rng = np.random.default_rng(0)
    f = Factors(b=rng.normal(size=(5, 3)), a=rng.normal(size=(3, 4)))
    u, s, vt = svd_of(product(f))
    assert (u * s) @ vt == pytest.approx(product(f), abs=1e-12)
    assert (u[np.abs(u).argmax(axis=0), np.arange(4)] > 0).all()


@pytest.mark.parametrize(("kind", "options"), [(TIES, {"density": 0, "scale": -1}), (TaskArithmetic, {"scale": True})])
def test_wrong_options_are_told_by_their_key(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**options)
    assert [line.split()[0] for line in caught.value.problems] == [f"strategy.{name}" for name in options]
