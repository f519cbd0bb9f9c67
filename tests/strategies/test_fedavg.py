"""FedAvg's numbers, by hand."""

from __future__ import annotations

import numpy as np

from fedpeft.core.types import ClientInfo, ClientUpdate
from fedpeft.strategies.fedavg import FedAvg


def update(client_id: int, num_examples: int, **tensors: list[float]) -> ClientUpdate:
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples)
    return ClientUpdate(
        client=client, tensors={k: np.float32(v) for k, v in tensors.items()}, num_examples=num_examples
    )


def test_fedavg_weighs_by_examples() -> None:
    """Three clients with 1, 1 and 2 examples, p = 1/4, 1/4, 1/2.

    A: 4/4 + 8/4 + 6/2 = 6 and -4/4 + 0 + 2/2 = 0; B: 1/4 + 3/4 + 5/2 = 3.5. What the round began with does not count.
    """
    start = {"A": np.float32([100, 100]), "B": np.float32([100])}
    updates = [update(0, 1, A=[4, -4], B=[1]), update(1, 1, A=[8, 0], B=[3]), update(2, 2, A=[6, 2], B=[5])]
    mean = FedAvg().aggregate(start, updates)
    assert {k: v.tolist() for k, v in mean.items()} == {"A": [6.0, 0.0], "B": [3.5]}


def test_mean_of_factors_is_not_the_mean_of_products() -> None:
    """A = 1, 3 and B = 2, 4: mean B x mean A = 3 x 2 = 6, mean of B A = (2 + 12) / 2 = 7; their covariance is 1."""
    mean = FedAvg().aggregate({}, [update(0, 5, A=[1], B=[2]), update(1, 5, A=[3], B=[4])])
    assert mean["B"] * mean["A"] == 6.0


def test_fedit_errs_by_the_covariance_of_the_factors() -> None:
    """sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B) (A_k - A), with B and A the means: 5 clients, 7 x 6, rank 3."""
    rng = np.random.default_rng(0)
    factors = [(rng.normal(size=(7, 3)), rng.normal(size=(3, 6))) for _ in range(5)]
    updates = [update(i, 1 + i, B=b.tolist(), A=a.tolist()) for i, (b, a) in enumerate(factors)]
    mean = FedAvg().aggregate({}, updates)
    shares = np.arange(1, 6) / 15
    lacking = sum(p * b @ a for p, (b, a) in zip(shares, factors, strict=True)) - mean["B"] @ mean["A"]
    covariance = sum(p * (b - mean["B"]) @ (a - mean["A"]) for p, (b, a) in zip(shares, factors, strict=True))
    assert np.linalg.norm(covariance) > 1
    assert np.allclose(lacking, covariance, rtol=0, atol=1e-5)
