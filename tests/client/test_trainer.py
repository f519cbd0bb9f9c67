"""Training settings are checked together, and a step of training is what it is on paper."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.client.trainer import TrainResult, TrainSettings, evaluate, train
from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.methods.base import Tunable
from fedpeft.tasks.base import Scores

FLOPS = StepFlops(per_example=1.0, per_token=10.0, per_token_pair=0.0)


class OneWeight(nn.Module):
    """A model with a single weight, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))


class Slopes:
    """Example i has loss weight x slope i, so the gradient of a step is the mean slope of its batch."""

    num_groups = 1
    slopes = np.float32([1, 2, 3, 6])

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), 5)

    def collate(self, rows: np.ndarray) -> Mapping[str, torch.Tensor]:
        return {"input_ids": torch.zeros((len(rows), 5)), "slopes": torch.from_numpy(self.slopes[rows])}

    def per_example_loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert model.training
        return model.weight * batch["slopes"]

    def score(self, model: nn.Module, rows: np.ndarray) -> Scores:
        assert not model.training
        return Scores(loss=float(len(rows)), correct=np.float64([1]), count=np.float64([len(rows)]))


def trained(**settings: float | int | str | None) -> tuple[float, TrainResult]:
    model = OneWeight()
    tunable = Tunable(model=model, shared={"weight": model.weight}, local={}, head_keys=frozenset(), rank=None)
    options = TrainSettings(**{"batch_size": 4, "lr": 0.1, "optimizer": "sgd", "max_grad_norm": None, **settings})  # type: ignore[arg-type]
    result = train(tunable, Slopes(), np.arange(4), options, dtype="float32", seed=0, flops=FLOPS)
    return float(model.weight.detach()), result


def test_a_step_follows_the_mean_of_the_losses() -> None:
    """Mean slope 3: the loss is 2 x 3 = 6, and 2 - 0.1 x 3 = 1.7. FLOPs of 4 examples of 5 tokens: 4 x (1 + 5 x 10)."""
    weight, result = trained(local_steps=1)
    assert weight == pytest.approx(1.7)
    assert (result.loss, result.steps, result.flops) == (6.0, 1, 204.0)
    assert result.cpu_s >= 0


def test_gradients_do_not_pile_up_and_losses_are_averaged() -> None:
    """Three steps of -0.3: 1.1. Losses 6, 5.1 and 4.2: mean 5.1."""
    weight, result = trained(local_steps=3)
    assert weight == pytest.approx(1.1)
    assert result.loss == pytest.approx(5.1)


def test_gradients_are_clipped_to_the_norm() -> None:
    """The gradient 3 becomes 0.5 under a cap of 0.5, and stays 3 under a cap of 4."""
    assert trained(local_steps=1, max_grad_norm=0.5)[0] == pytest.approx(1.95, abs=1e-6)
    assert trained(local_steps=1, max_grad_norm=4.0)[0] == pytest.approx(1.7)


def test_weight_decay_of_sgd_and_adamw() -> None:
    """SGD adds decay x weight to the gradient: 2 - 0.1 x (3 + 0.5 x 2). AdamW: 2 - 0.1 x 0.5 x 2, then lr x sign."""
    assert trained(local_steps=1, weight_decay=0.5)[0] == pytest.approx(1.6)
    assert trained(local_steps=1, weight_decay=0.5, optimizer="adamw")[0] == pytest.approx(1.8, abs=1e-6)


def test_epochs_take_every_row_once() -> None:
    """Two batches of two an epoch: the two mean slopes add up to 6 whatever the order; 2 - 0.1 x 6."""
    weight, result = trained(local_steps=None, batch_size=2)
    assert weight == pytest.approx(1.4)
    assert result.steps == 2


def test_evaluation_adds_up_batches_work_and_steps() -> None:
    model = OneWeight()
    tunable = Tunable(model=model, shared={"weight": model.weight}, local={}, head_keys=frozenset(), rank=None)
    scores = evaluate(tunable, Slopes(), [np.arange(3), np.arange(1)], dtype="float32", flops=FLOPS)
    assert (scores.loss, scores.correct.tolist(), scores.count.tolist()) == (4.0, [2.0], [4.0])
    assert (scores.steps, scores.flops) == (2, 4 * 51.0)


@pytest.mark.parametrize(
    ("settings", "examples", "steps"),
    [
        ({"local_steps": 7}, 100, 7),
        ({"local_steps": None, "batch_size": 16}, 33, 3),
        ({"local_steps": None, "batch_size": 16, "local_epochs": 2}, 32, 4),
        ({"local_steps": None, "batch_size": 16}, 1, 1),
    ],
)
def test_steps_by_hand(settings: dict[str, int | None], examples: int, steps: int) -> None:
    """33 examples in batches of 16 are 3 steps an epoch; two epochs of 32 are 4."""
    assert TrainSettings(**settings).steps(examples) == steps  # type: ignore[arg-type]


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainSettings(
            local_steps=0, local_epochs=0, batch_size=0, lr=0, weight_decay=-1, max_grad_norm=0, optimizer="adam"
        )
    named = [line.split()[0].removeprefix("client.") for line in caught.value.problems]
    assert named == ["local_steps", "local_epochs", "batch_size", "lr", "weight_decay", "max_grad_norm", "optimizer"]
