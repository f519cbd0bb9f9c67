"""SLoRA: means of masked values, and the change from values to factors."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.masks import mask_indices, scatter
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedadam import FedAdam
from fedpeft.strategies.slora import SLoRA, trainable_split
from fedpeft.strategies.view import View

A, B, V, HEAD = "m.lora_A.weight", "m.lora_B.weight", "m.sparse_values", "head.weight"
SCALING = 2.0


def client(client_id: int = 0) -> ClientInfo:
    return ClientInfo(client_id=client_id, node_id=client_id, num_examples=1, rank=1, scaling=SCALING)


def enter(strategy: FedPeft, server_round: int) -> None:
    plan = RankPlan(rank=1, default=1, scaling_for=lambda rank: SCALING)
    strategy.view = View(server_round=server_round, ranks=plan, asked=(client(0), client(1)))


def reply(client_id: int, num_examples: int, tensors: Tensors) -> ClientUpdate:
    arrays = {key: np.float32(value) for key, value in tensors.items()}
    return ClientUpdate(client=client(client_id), tensors=arrays, num_examples=num_examples)


def whole(m: int, n: int, rank: int = 1) -> Tensors:
    """Global tensors of one (m, n) weight of which every place is masked, so that values are the weight's change."""
    rng = np.random.default_rng(0)
    return {
        HEAD: np.zeros((1, 1), np.float32),
        A: rng.normal(size=(rank, n)).astype(np.float32),
        B: np.zeros((m, rank), np.float32),
        V: np.zeros(m * n, np.float32),
    }


@pytest.mark.parametrize("split", ["b", "even"])
def test_two_rounds_and_the_change_by_hand(split: str) -> None:
    """2 x 2, every place masked, p = 1/4 and 3/4, scaling 2.

    Round 1: v = 1/4 (4, 0, 0, 0) + 3/4 (0, 0, 0, 4) = (1, 0, 0, 3). Round 2: both say (2, 0, 0, 6), so dW is
    diag(2, 6). Its best change of rank 1 is diag(0, 6): B = 6 / 2 u, A = v^T, and with the roots in both B = sqrt(3) u,
    A = sqrt(3) v^T. Dropped is 2 of sqrt(40), the cosine is 6 / sqrt(40).
    """
    strategy = SLoRA(sparse_rounds=2, rounds=3, density=1.0, split=split)  # type: ignore[arg-type]
    start = whole(2, 2)
    enter(strategy, 1)
    first = strategy.aggregate(
        start, [reply(0, 1, {V: [4, 0, 0, 0], HEAD: [[8]]}), reply(1, 3, {V: [0, 0, 0, 4], HEAD: [[0]]})]
    )
    assert first[V].tolist() == [1, 0, 0, 3]
    assert first[HEAD].tolist() == [[2]]
    assert first[A].tobytes() == start[A].tobytes()
    assert strategy.notes() == {"stage": 1}
    enter(strategy, 2)
    after = strategy.aggregate(first, [reply(k, 1, {V: [2, 0, 0, 6], HEAD: [[2]]}) for k in (0, 1)])
    assert after[V].tolist() == [0, 0, 0, 0]
    assert np.allclose(SCALING * after[B] @ after[A], [[0, 0], [0, 6]], atol=1e-6)
    norms = (np.linalg.norm(after[A]), np.linalg.norm(after[B]))
    assert np.allclose(norms, (1, 3) if split == "b" else (3**0.5, 3**0.5))
    notes = strategy.notes()
    assert (notes["stage"], notes["svd_dropped"], notes["svd_cosine"]) == (
        2, pytest.approx(2 / 40**0.5), pytest.approx(6 / 40**0.5),
    )  # fmt: skip


@pytest.mark.parametrize("split", ["b", "even"])
@pytest.mark.parametrize(("m", "n", "rank"), [(12, 7, 3), (7, 12, 3), (6, 6, 6)])
def test_the_factors_are_the_best_of_their_rank(m: int, n: int, rank: int, split: str) -> None:
    """s B A is the truncated SVD of scatter(v), to float32; ``svd_dropped`` and ``svd_cosine`` are as measured."""
    strategy = SLoRA(sparse_rounds=1, density=0.4, mask_seed=5, split=split)  # type: ignore[arg-type]
    start = whole(m, n, rank)
    indices = mask_indices(5, "m", (m, n), 0.4)
    values = np.random.default_rng(1).normal(size=len(indices))
    start[V] = np.zeros(len(indices), np.float32)
    enter(strategy, 1)
    after = strategy.aggregate(start, [reply(0, 1, {V: values, HEAD: [[0]]})])
    dense = scatter(np.float32(values), indices, (m, n))
    u, s, vt = np.linalg.svd(dense)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    got = SCALING * after[B].astype(np.float64) @ after[A]
    assert np.linalg.norm(got - best) < 1e-6 * np.linalg.norm(best)
    notes = strategy.notes()
    assert notes["svd_dropped"] == pytest.approx(np.linalg.norm(dense - got) / np.linalg.norm(dense), abs=1e-6)
    cosine = np.sum(dense * got) / np.linalg.norm(dense) / np.linalg.norm(got)
    assert notes["svd_cosine"] == pytest.approx(cosine, abs=1e-6)


def test_values_travel_first_and_factors_afterwards() -> None:
    strategy = SLoRA(sparse_rounds=1, density=1.0)
    tensors = whole(3, 2)
    enter(strategy, 1)
    assert set(strategy.client_tensors(tensors, client())) == {V, HEAD}
    assert set(strategy.model_tensors(tensors)) == {A, B, V, HEAD}
    strategy.aggregate(tensors, [reply(0, 1, {V: np.ones(6), HEAD: [[0]]})])
    # An evaluation on the clients in the same round sees the factors already.
    assert set(strategy.client_tensors(tensors, client())) == {A, B, HEAD}
    assert set(strategy.model_tensors(tensors)) == {A, B, HEAD}
    enter(strategy, 2)
    after = strategy.aggregate(tensors, [reply(0, 1, {A: np.ones((1, 2)), B: np.ones((3, 1)), HEAD: [[4]]})])
    assert (after[A].tolist(), after[B].tolist(), after[HEAD].tolist()) == ([[1, 1]], [[1], [1], [1]], [[4]])


def test_a_kept_round_does_not_lose_the_change() -> None:
    """Round 2 of 2 came to nothing: stage one goes on in round 3 and ends there."""
    strategy = SLoRA(sparse_rounds=2, density=1.0)
    tensors = whole(2, 2)
    enter(strategy, 1)
    tensors = strategy.aggregate(tensors, [reply(0, 1, {V: [1, 0, 0, 0], HEAD: [[0]]})])
    enter(strategy, 3)
    assert V in strategy.client_tensors(tensors, client())
    after = strategy.aggregate(tensors, [reply(0, 1, {V: [0, 5, 0, 0], HEAD: [[0]]})])
    assert np.allclose(SCALING * after[B] @ after[A], [[0, 5], [0, 0]], atol=1e-6)
    enter(strategy, 4)
    assert V not in strategy.client_tensors(after, client())


@pytest.mark.parametrize("split", ["b", "even"])
def test_a_change_of_too_low_rank_leaves_nothing_dead(split: str) -> None:
    """Values that are all zero, or of rank 1 for factors of rank 2: B is zero there, A is not, and so B can train."""
    strategy = SLoRA(sparse_rounds=1, density=1.0, split=split)  # type: ignore[arg-type]
    enter(strategy, 1)
    nothing = strategy.aggregate(whole(3, 4, 2), [reply(0, 1, {V: np.zeros(12), HEAD: [[0]]})])
    assert not nothing[B].any()
    assert np.allclose(nothing[A] @ nothing[A].T, np.eye(2), atol=1e-6)
    assert strategy.notes() == {"stage": 2, "svd_dropped": 0.0, "svd_cosine": 1.0}
    u, s, vt = np.linalg.svd(np.outer([1, 2, 2], [0, 0, 0, 1]), full_matrices=False)
    s[1] = 1e-15  # what rounding leaves of a zero
    a, b = trainable_split((u, s, vt), 2, 1.0, split)  # type: ignore[arg-type]
    assert np.linalg.norm(a[1]) == pytest.approx(1)
    assert not b[:, 1].any()
    assert np.allclose(b @ a, np.outer([1, 2, 2], [0, 0, 0, 1]))


def test_the_state_is_the_stage() -> None:
    strategy, tensors = SLoRA(sparse_rounds=1, density=1.0), whole(2, 2)
    enter(strategy, 1)
    strategy.aggregate(tensors, [reply(0, 1, {V: [1, 0, 0, 2], HEAD: [[0]]})])
    other = SLoRA(sparse_rounds=1, density=1.0)
    other.load_state(strategy.state())
    assert other.notes() == strategy.notes()
    assert V not in other.client_tensors(tensors, client())


def test_another_density_than_the_methods_is_refused_before_training() -> None:
    strategy = SLoRA(sparse_rounds=1, density=0.5)
    with pytest.raises(ConfigError, match=r"strategy.density=0.5 masks 2 places of m, the method has 4"):
        strategy.client_tensors(whole(2, 2), client())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sparse_rounds": 0}, r"sparse_rounds must be 1 or more, got 0 \(set strategy.sparse_rounds\)"),
        ({"sparse_rounds": 5, "rounds": 5}, "sparse_rounds must leave rounds for the factors: below rounds=5, got 5"),
        ({"split": "a"}, r"split must be b or even, got 'a' \(set strategy.split\)"),
        ({"density": 0}, r"density must be in \(0, 1\], got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SLoRA(**settings)  # type: ignore[arg-type]


def test_momentum_cannot_reach_over_the_change() -> None:
    with pytest.raises(ConfigError, match="FedAdam cannot step over SLoRA, which renews the factors' basis"):
        FedAdam(rule=SLoRA())
