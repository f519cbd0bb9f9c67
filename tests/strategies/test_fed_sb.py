"""Fed-SB: the basis from gradients, exact means of R, and who is sent A and B."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.orders import Orders
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fed_sb import FedSB
from fedpeft.strategies.fedadam import FedAdam
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.view import View

A, R, B, HEAD = "m.lora_A.weight", "m.lora_R.weight", "m.lora_B.weight", "head.weight"
SCALING = 2.0
GLOBAL: Tensors = {
    HEAD: np.float32([[7]]),
    A: np.float32([[1, 0, 0]]),
    B: np.float32([[1], [0]]),
    R: np.float32([[0]]),
}


def client(client_id: int) -> ClientInfo:
    return ClientInfo(client_id=client_id, node_id=client_id, num_examples=1, rank=1, scaling=SCALING)


def enter(strategy: FedPeft, server_round: int, asked: tuple[int, ...] = (0, 1)) -> None:
    ranks = RankPlan(rank=1, default=1, scaling_for=lambda rank: SCALING / rank)
    strategy.view = View(server_round=server_round, ranks=ranks, asked=tuple(client(one) for one in asked))


def reply(client_id: int, num_examples: int, **tensors: list[list[float]]) -> ClientUpdate:
    named = {"A": A, "R": R, "B": B, "head": HEAD}
    arrays = {named[key]: np.float32(value) for key, value in tensors.items()}
    return ClientUpdate(client=client(client_id), tensors=arrays, num_examples=num_examples)


def gradients() -> list[ClientUpdate]:
    """G_0 = (0, 4)^T (0, 0, 1) with 1 example, G_1 = (8, 0)^T (0, 1, 0) with 3: p = 1/4, 3/4."""
    return [
        reply(0, 1, A=[[0, 0, 1]], B=[[0], [4]], R=[[0]]),
        reply(1, 3, A=[[0, 1, 0]], B=[[8], [0]], R=[[0]]),
    ]


def started(**settings: float) -> tuple[FedSB, Tensors]:
    strategy = FedSB(**settings)  # type: ignore[arg-type]
    enter(strategy, 1)
    tensors = strategy.aggregate(GLOBAL, gradients())
    enter(strategy, 2)
    return strategy, tensors


def test_the_basis_is_that_of_the_mean_gradient() -> None:
    """G = 1/4 G_0 + 3/4 G_1 = [[0, 6, 0], [0, 0, 1]]: singular values 6 and 1.

    Of rank 1: B = (1, 0)^T, A = (0, 1, 0), and R = -init_lr 6 / s = -0.1 x 6 / 2 = -0.3, so that s B R A is
    -0.1 [[0, 6, 0], [0, 0, 0]]. The head was not sent and stays.
    """
    _, tensors = started(init_lr=0.1)
    assert np.allclose(tensors[B], [[1], [0]], atol=1e-6)
    assert np.allclose(tensors[A], [[0, 1, 0]], atol=1e-6)
    assert np.allclose(tensors[R], [[-0.3]], atol=1e-6)
    assert np.allclose(SCALING * tensors[B] @ tensors[R] @ tensors[A], [[0, -0.6, 0], [0, 0, 0]], atol=1e-6)
    assert tensors[HEAD].tobytes() == GLOBAL[HEAD].tobytes()


def test_training_starts_from_the_base_model_unless_told_otherwise() -> None:
    _, tensors = started()
    assert tensors[R].tobytes() == np.float32([[0]]).tobytes(), "not even a negative zero"


def test_the_mean_of_r_is_exact_by_hand() -> None:
    """R_0 = 4 with 1 example, R_1 = 8 with 3: R = 7, and s B R A = 14 B A = 1/4 (2 B 4 A) + 3/4 (2 B 8 A)."""
    strategy, tensors = started()
    after = strategy.aggregate(tensors, [reply(0, 1, R=[[4]], head=[[0]]), reply(1, 3, R=[[8]], head=[[4]])])
    assert after[R].tolist() == [[7]]
    assert after[HEAD].tolist() == [[3]]
    assert after[A].tobytes() == tensors[A].tobytes()
    assert after[B].tobytes() == tensors[B].tobytes()
    wanted = 0.25 * (SCALING * tensors[B] @ tensors[A] * 4) + 0.75 * (SCALING * tensors[B] @ tensors[A] * 8)
    assert np.allclose(SCALING * after[B] @ after[R] @ after[A], wanted)


def sent(strategy: FedSB, client_id: int) -> set[str]:
    return set(strategy.client_tensors(GLOBAL, client(client_id)))


def test_what_travels_in_each_stage() -> None:
    """First A and B for gradients; then R and the head, with A and B once; up go R and the head."""
    strategy = FedSB()
    enter(strategy, 1)
    assert sent(strategy, 0) == {A, B}
    assert Orders.read(strategy.client_config(client(0))) == Orders(probe="gradient")
    strategy, tensors = started()
    fresh = Orders.read(strategy.client_config(client(0)))
    assert sent(strategy, 0) == {A, B, R, HEAD}
    assert fresh == Orders(store=("lora_A", "lora_B"), freeze=("lora_A", "lora_B"))
    assert fresh.returned(sent(strategy, 0)) == [HEAD, R]
    strategy.aggregate(tensors, [reply(0, 1, R=[[1]], head=[[1]])])
    enter(strategy, 3)
    assert sent(strategy, 0) == {R, HEAD}
    assert Orders.read(strategy.client_config(client(0))) == Orders(held=("lora_A", "lora_B"))
    assert sent(strategy, 1) == {A, B, R, HEAD}, "asked in round 2, but no answer came"


def rounds(strategy: FedSB, tensors: Tensors) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Run rounds: yield who holds A and B before each."""
    plan = [((0, 1), (0, 1)), ((1, 2), (2,)), ((0, 3), (0, 3)), ((1, 2), (1, 2))]
    for server_round, (asked, answered) in enumerate(plan, start=2):
        enter(strategy, server_round, asked)
        holders = tuple(one for one in range(4) if A not in sent(strategy, one))
        yield server_round, asked, holders
        tensors = strategy.aggregate(tensors, [reply(one, 1, R=[[1]], head=[[1]]) for one in answered])


def test_a_client_that_does_not_answer_is_no_holder_any_more() -> None:
    """Asked and answered: 0 1; then of 1 2 only 2; then 0 3; then 1 2. So 1 is sent A and B twice, 0 and 2 once."""
    strategy, tensors = started()
    assert [holders for _, _, holders in rounds(strategy, tensors)] == [(), (0, 1), (0, 2), (0, 2, 3)]
    assert strategy.notes() == {"holders": 4}


def test_after_a_round_that_was_kept_nobody_is_a_holder_for_certain() -> None:
    """Round 3 came to nothing: whoever was asked may have lost A and B, and the strategy was not told who answered."""
    strategy, tensors = started()
    strategy.aggregate(tensors, [reply(0, 1, R=[[1]], head=[[1]])])
    enter(strategy, 3)
    assert A not in sent(strategy, 0)
    enter(strategy, 4)
    assert A in sent(strategy, 0)
    strategy.aggregate(tensors, [reply(1, 1, R=[[1]], head=[[1]])])
    enter(strategy, 5)
    assert A in sent(strategy, 0)
    assert A not in sent(strategy, 1)


def test_gradients_are_asked_again_after_a_kept_round() -> None:
    strategy = FedSB()
    enter(strategy, 2)
    assert Orders.read(strategy.client_config(client(0))).probe == "gradient"
    assert not np.array_equal(strategy.aggregate(GLOBAL, gradients())[A], GLOBAL[A])


def test_the_state_is_who_holds_what() -> None:
    strategy, tensors = started()
    strategy.aggregate(tensors, [reply(0, 1, R=[[1]], head=[[1]])])
    other = FedSB()
    other.load_state(strategy.state())
    enter(other, 3)
    assert (sent(other, 0), sent(other, 1)) == ({R, HEAD}, {A, B, R, HEAD})


def test_a_random_basis_never_travels() -> None:
    """Training begins in round 1; one client returns itself, and equal clients are a fixed point."""
    strategy = FedSB(init="random")
    enter(strategy, 1)
    assert sent(strategy, 0) == {R, HEAD}
    assert strategy.client_config(client(0)) == {}
    for answers in ([reply(0, 5, R=[[3]], head=[[1]])], [reply(k, 1 + k, R=[[3]], head=[[1]]) for k in range(3)]):
        after = strategy.aggregate(GLOBAL, answers)
        assert (after[R].tolist(), after[A].tobytes()) == ([[3]], GLOBAL[A].tobytes())
    assert strategy.notes() == {}
    assert (strategy.renews_basis, strategy.bears_sparse, strategy.linear) == (False, True, True)


def test_gradients_are_no_weighted_sum() -> None:
    """The singular vectors of a sum of products need every client's factors by themselves."""
    assert not FedSB().linear


def test_momentum_would_break_the_basis() -> None:
    with pytest.raises(ConfigError, match=r"FedAdam cannot step over FedSB, .* renews the factors' basis"):
        FedAdam(rule=FedSB())
    assert FedAdam(rule=FedSB(init="random")).requires == {"core"}
    assert FedAvg.renews_basis is FedSB.renews_basis is False, "the class is untouched"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"init": "svd"}, r"init must be gradient or random, got 'svd' \(set strategy.init\)"),
        ({"init_lr": -0.1}, r"init_lr must be >= 0, got -0.1 \(set strategy.init_lr\)"),
        ({"init_lr": float("nan")}, "init_lr must be >= 0, got nan"),
        ({"init": "random", "init_lr": 0.1}, "init_lr=0.1 steps along the gradient, which init=random never has"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        FedSB(**settings)  # type: ignore[arg-type]
