"""FlexLoRA's split by singular values: by hand, against dense SVDs, and where values are missing."""

from __future__ import annotations

import numpy as np
from factor_updates import HEAD, A, B, close, enter, mean_product, product, random_updates, tensors, update

from fedpeft.core.types import ClientInfo
from fedpeft.strategies.flexlora import FlexLoRA

SCALINGS = {1: 6.0, 2: 3.0, 3: 2.0}


def client(rank: int) -> ClientInfo:
    return ClientInfo(client_id=0, node_id=0, num_examples=1, rank=rank, scaling=SCALINGS[rank])


def test_each_rank_gets_the_strongest_directions() -> None:
    """Two clients of p = 1/2 and s = 2: 2 x 3 e1 e1^T / 2 + 2 x 2 e2 e2^T / 2 = diag(3, 2).

    At the global scaling 1: A = I, B = diag(3, 2). A client of rank 1 and scaling 2 gets A = (1, 0), B = (1.5, 0)^T:
    2 x 1.5 = 3.
    """
    strategy = FlexLoRA()
    enter(strategy, {1: 2.0, 2: 1.0})
    updates = [
        update(0, 1, 2.0, tensors([[1, 0]], [[3], [0]], 2)),
        update(1, 1, 2.0, tensors([[0, 1]], [[0], [2]], 4)),
    ]
    after = strategy.aggregate(tensors(np.zeros((2, 2)), np.zeros((2, 2))), updates)
    assert np.allclose(after[A], np.eye(2), atol=1e-7)
    assert np.allclose(after[B], np.diag([3, 2]), atol=1e-6)
    assert after[HEAD].tolist() == [3.0]
    sent = strategy.client_tensors(after, ClientInfo(client_id=0, node_id=0, num_examples=1, rank=1, scaling=2.0))
    assert np.allclose(sent[A], [[1, 0]], atol=1e-7)
    assert np.allclose(sent[B], [[1.5], [0]], atol=1e-6)


def test_the_error_at_each_rank_is_the_tail_of_the_singular_values() -> None:
    """What a client of rank r gets is the dense mean's own truncation to r, of error sqrt(sum_{i > r} S_i^2)."""
    strategy = FlexLoRA()
    enter(strategy, SCALINGS)
    updates = random_updates(SCALINGS, 7, 6)
    mean = mean_product(updates)
    u, s, vt = np.linalg.svd(mean, full_matrices=False)
    after = strategy.aggregate(tensors(np.zeros((3, 6)), np.zeros((7, 3))), updates)
    for rank, scaling in SCALINGS.items():
        got = product(dict(strategy.client_tensors(after, client(rank))), scaling)
        assert close(got, u[:, :rank] * s[:rank] @ vt[:rank])
        tail = np.sqrt(np.square(s[rank:]).sum())
        assert tail > 0.1 * np.linalg.norm(mean)
        assert np.isclose(np.linalg.norm(got - mean), tail, rtol=1e-6)


def test_nothing_is_lost_where_the_global_rank_holds_the_sum() -> None:
    """Ranks 1 + 2 + 3 fit into a global rank of 6: the mean of products itself."""
    strategy = FlexLoRA()
    enter(strategy, {**SCALINGS, 6: 1.0})
    updates = random_updates(SCALINGS, 8, 7)
    after = strategy.aggregate(tensors(np.zeros((6, 7)), np.zeros((8, 6))), updates)
    assert close(product(after, 1.0), mean_product(updates))


def test_directions_without_a_singular_value_can_still_train() -> None:
    """One client of rank 1 leaves two of three directions open: rows of A orthonormal to its own, columns of B zero."""
    strategy = FlexLoRA(seed=3)
    enter(strategy, SCALINGS)
    updates = random_updates({1: 6.0}, 5, 4)
    start = tensors(np.zeros((3, 4)), np.zeros((5, 3)))
    after = strategy.aggregate(start, updates)
    assert np.allclose(after[A] @ after[A].T, np.eye(3), atol=1e-6)
    assert not after[B][:, 1:].any()
    assert close(product(after, 2.0), mean_product(updates))
    again = strategy.aggregate(start, updates)
    assert np.array_equal(after[A], again[A])
