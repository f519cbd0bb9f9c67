"""FedProx, control variates and HetLoRA's tail, by hand on one parameter or one pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.client.pulls import pulls_of
from fedpeft.core.orders import Orders

A, B = "m.lora_A.weight", "m.lora_B.weight"


def live(a: list[list[float]], b: list[list[float]]) -> dict[str, torch.Tensor]:
    return {A: torch.tensor(a, requires_grad=True), B: torch.tensor(b, requires_grad=True)}


def test_nothing_asked_is_nothing_done() -> None:
    assert pulls_of(Orders(), live([[1.0]], [[1.0]]), [A, B], {}) is None


def test_the_proximal_term_pulls_back() -> None:
    """mu / 2 (x - x0)^2 with mu 0.5, x0 = 1, x = 3: gradient 0.5 x 2 = 1 joins the loss's own 10."""
    shared = live([[1.0]], [[0.0]])
    pulls = pulls_of(Orders(prox=0.5), shared, [A], {})
    assert pulls is not None
    with torch.no_grad():
        shared[A].fill_(3.0)
    shared[A].grad = torch.tensor([[10.0]])
    pulls.before_clipping()
    assert shared[A].grad.item() == 11.0
    pulls.after_clipping()
    assert shared[A].grad.item() == 11.0


def test_control_variates_join_after_clipping() -> None:
    shared = live([[1.0]], [[0.0]])
    pulls = pulls_of(Orders(), shared, [A], {f"control.{A}": np.float32([[-2.0]])})
    assert pulls is not None
    shared[A].grad = torch.tensor([[10.0]])
    pulls.before_clipping()
    assert shared[A].grad.item() == 10.0
    pulls.after_clipping()
    assert shared[A].grad.item() == 8.0


def test_the_tail_is_shrunk_as_a_product_of_norms() -> None:
    """Rank 2 with its tail from 1: B[:, 1] = (3, 4), A[1] = (6, 8): 0.1 x 5 x 10 = 5.

    d / dB[0, 1] = 0.1 x 3 / 5 x 10 = 0.6; the head of the factors has no gradient.
    """
    shared = live([[1.0, 1.0], [6.0, 8.0]], [[1.0, 3.0], [1.0, 4.0]])
    pulls = pulls_of(Orders(tail_rank=1, tail_weight=0.1), shared, [A, B], {})
    assert pulls is not None
    loss = pulls.loss()
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(5.0)
    loss.backward()
    assert shared[B].grad is not None
    assert shared[B].grad.tolist() == [[0.0, pytest.approx(0.6)], [0.0, pytest.approx(0.8)]]


def test_a_zero_tail_has_no_gradient_but_is_no_nan() -> None:
    """B starts at zero: the norm's slope there is taken as 0."""
    shared = live([[1.0], [1.0]], [[0.0, 0.0]])
    pulls = pulls_of(Orders(tail_rank=1, tail_weight=1.0), shared, [A, B], {})
    assert pulls is not None
    loss = pulls.loss()
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert torch.isfinite(shared[A].grad).all() and torch.isfinite(shared[B].grad).all()  # type: ignore[arg-type]
