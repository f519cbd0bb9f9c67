"""LoRA-FAIR's correction: by hand, against its dense formula, and what it cannot undo."""

from __future__ import annotations

import numpy as np
import pytest
from factor_updates import HEAD, A, B, enter, mean_product, product, random_updates, tensors, update

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import ClientUpdate
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.lora_fair import LoRAFAIR


def drifted(clients: int = 4) -> list[ClientUpdate]:
    """Clients of rank 2 whose factors have nothing in common."""
    made = [random_updates({2: 3.0}, 9, 8, seed=i)[0].tensors for i in range(clients)]
    return [update(i, 1 + i, 3.0, one) for i, one in enumerate(made)]


def test_b_moves_towards_the_mean_product() -> None:
    """A = 1, 3 and B = 2, 4: means 2 and 3, R = 7 - 6 = 1; with lam 1, D = 1 x 2 / (2 x 2 + 1) = 0.4: 3.4 x 2 = 6.8."""
    strategy = LoRAFAIR(lam=1.0)
    enter(strategy, {1: 1.0})
    updates = [update(0, 1, 1.0, tensors([[1]], [[2]], 1)), update(1, 1, 1.0, tensors([[3]], [[4]], 5))]
    after = strategy.aggregate(tensors([[0]], [[0]]), updates)
    assert (after[A].item(), after[HEAD].item()) == (2.0, 3.0)
    assert after[B].item() == pytest.approx(3.4, rel=1e-6)


def test_it_is_the_formula_that_the_class_states() -> None:
    updates, lam = drifted(), 0.3
    mean = {
        key: np.average([np.float64(one.tensors[key]) for one in updates], axis=0, weights=[1, 2, 3, 4])
        for key in (A, B)
    }
    a, b = mean[A], mean[B]
    residual = mean_product(updates) / 3.0 - b @ a
    wanted = b + residual @ a.T @ np.linalg.inv(a @ a.T + lam * np.eye(2))
    after = LoRAFAIR(lam=lam).aggregate(tensors(np.zeros((2, 8)), np.zeros((9, 2))), updates)
    assert np.allclose(after[B], wanted, rtol=1e-5, atol=1e-6)
    assert np.allclose(after[A], a, rtol=1e-6)


def test_the_error_shrinks_to_what_lies_outside_the_rows_of_a() -> None:
    """With lam near 0 the product is the mean's projection on A's rows: no B does better; large lam gives FedIT."""
    updates, start = drifted(), tensors(np.zeros((2, 8)), np.zeros((9, 2)))
    wanted = mean_product(updates)
    errors = {
        lam: np.linalg.norm(product(LoRAFAIR(lam=lam).aggregate(start, updates), 3.0) - wanted)
        for lam in (1e-9, 0.01, 1.0, 1e9)
    }
    fedit = np.linalg.norm(product(FedAvg().aggregate(start, updates), 3.0) - wanted)
    rows = np.linalg.svd(np.float64(FedAvg().aggregate(start, updates)[A]), full_matrices=False)[2]
    assert errors[1e-9] == pytest.approx(np.linalg.norm(wanted - wanted @ rows.T @ rows), rel=1e-5)
    assert errors[1e-9] < errors[0.01] < errors[1.0] < errors[1e9]
    assert errors[1e9] == pytest.approx(fedit, rel=1e-6)


@pytest.mark.parametrize("lam", [0, -1, float("inf"), float("nan")])
def test_a_lam_out_of_range_is_refused(lam: float) -> None:
    with pytest.raises(ConfigError, match=r"lam must be a positive number.*set strategy.lam"):
        LoRAFAIR(lam=lam)
