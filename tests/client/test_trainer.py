"""Training settings are checked together, and training depends on its seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.client.trainer import TrainSettings
from fedpeft.core.errors import ConfigError


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
    named = [line.split()[0] for line in caught.value.problems]
    assert named == [
        f"client.{n}"
        for n in ("local_steps", "local_epochs", "batch_size", "lr", "weight_decay", "max_grad_norm", "optimizer")
    ]


def test_settings_that_switch_things_off_are_fine() -> None:
    settings = TrainSettings(local_steps=None, max_grad_norm=None, weight_decay=0.0, optimizer="sgd")
    assert settings.steps(np.int64(5)) == 1  # type: ignore[arg-type]
