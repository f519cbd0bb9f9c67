"""FedPepTAO's share of layers from a Hessian that is known by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.client.measure import curvature_share
from fedpeft.methods.base import Tunable
from fedpeft.tasks.base import Task


def share(curvatures: list[float], unit: float, head: float = 0.0) -> float:
    """Return the share for the loss ``unit / 2 (sum_i a_i x_i^2 + head y^2)``, y a head that travels."""
    x, y = nn.Parameter(torch.ones(len(curvatures))), nn.Parameter(torch.ones(1))
    a = torch.tensor(curvatures)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return unit / 2 * ((a * x**2).sum() + head * y[0] ** 2)[None]

    task = cast(Task, SimpleNamespace(collate=lambda rows: {}, per_example_loss=loss))
    shared = {"m.layers.0.x": x, "y": y}
    tunable = Tunable(model=nn.Module(), shared=shared, local={}, head_keys=frozenset({"y"}), rank=None)
    source = np.random.default_rng(0)
    return curvature_share(tunable, [x, y], task, np.arange(2), dtype="float32", rng=source)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_two_of_four_eigenvalues_stand_out_in_any_unit(unit: float) -> None:
    """H = unit diag(1, 0.9, 0.01, 0). A start of +-1 gives every eigenvalue the weight 1/4, exactly.

    By the largest: 1, 0.9, 0.01, 0. The share above t = 0.1, 0.2 ... 0.5 is 1/2: four calm steps, rho = 1/2.
    """
    assert share([1.0, 0.9, 0.01, 0.0], unit) == pytest.approx(0.5, abs=1e-6)


def test_a_head_does_not_count() -> None:
    """A head of curvature 1000 would dwarf all others: scaled by it, nothing stands out."""
    assert share([1.0, 0.9, 0.01, 0.0], 1.0, head=1000.0) == pytest.approx(0.5, abs=1e-6)


def test_a_flat_loss_has_nothing_that_stands_out() -> None:
    assert share([0.0, 0.0], 1.0) == 0.0
