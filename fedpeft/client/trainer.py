"""Local training and evaluation of a tunable model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.client.pulls import Pulls
from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.checkpointing import checkpointed
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.methods.base import Tunable
from fedpeft.tasks.base import Scores, Task
from fedpeft.tasks.batches import training_batches

if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a client trains in one round.

    Args:
        local_steps: optimiser steps; None to count epochs instead.
        local_epochs: passes over the client's data where ``local_steps`` is None.
        batch_size: examples a step.
        lr: learning rate.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: gradients are clipped to this L2 norm, None for not at all.
        optimizer: ``adamw`` or ``sgd``; made afresh in each round.
        gradient_checkpointing: whether activations are computed anew in the backward pass instead of being kept.

    Raises:
        ConfigError: an argument is out of range; all problems together.
    """

    local_steps: int | None = 16
    local_epochs: int = 1
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        checks = [
            (
                self.local_steps is None or self.local_steps >= 1,
                f"client.local_steps must be >= 1 or null, got {self.local_steps}",
            ),
            (self.local_epochs >= 1, f"client.local_epochs must be >= 1, got {self.local_epochs}"),
            (self.batch_size >= 1, f"client.batch_size must be >= 1, got {self.batch_size}"),
            (self.lr > 0, f"client.lr must be positive, got {self.lr}"),
            (self.weight_decay >= 0, f"client.weight_decay must be >= 0, got {self.weight_decay}"),
            (
                self.max_grad_norm is None or self.max_grad_norm > 0,
                f"client.max_grad_norm must be positive or null, got {self.max_grad_norm}",
            ),
            (
                self.optimizer in OPTIMIZERS,
                f"client.optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}",
            ),
            (
                isinstance(self.gradient_checkpointing, bool),
                f"client.gradient_checkpointing must be true or false, got {self.gradient_checkpointing!r}",
            ),
        ]
        if problems := [message for ok, message in checks if not ok]:
            raise ConfigError(problems)

    def steps(self, num_examples: int) -> int:
        """Return the optimiser steps for a client with this many examples."""
        return self.local_steps or self.local_epochs * -(-num_examples // self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What local training took and gave."""

    loss: float
    steps: int
    flops: float
    cpu_s: float


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which products on a device run in ``dtype``."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def train(
    tunable: Tunable,
    task: Task,
    rows: np.ndarray,
    settings: TrainSettings,
    *,
    dtype: str,
    seed: int,
    flops: StepFlops,
    parameters: list[torch.Tensor] | None = None,
    pulls: Pulls | None = None,
) -> TrainResult:
    """Train the adapter in place on ``rows``.

    The loss of a step is the mean of the per-example losses. Batches and dropout depend on ``seed`` alone.

    Args:
        tunable: the model with its live tensors.
        task: batches and losses.
        rows: rows of the task to train on.
        settings: steps, batch size, optimiser.
        dtype: dtype of the products.
        seed: seeds batches and dropout.
        flops: cost of a step.
        parameters: what the optimiser updates, None for everything that the method trains.
        pulls: what else pulls on the gradients.
    """
    import torch

    pulls = pulls or Pulls()
    parameters = tunable.trainable if parameters is None else parameters

    started = time.process_time()
    rng = np.random.Generator(np.random.PCG64(seed))
    torch.manual_seed(seed)
    optimizer = new_optimizer(parameters, settings)
    num_steps = settings.steps(len(rows))
    tunable.model.train()
    total_loss, total_flops = 0.0, 0.0
    with checkpointed(tunable.model, settings.gradient_checkpointing):
        for batch_rows in training_batches(rows, task.lengths(rows), settings.batch_size, num_steps, rng):
            batch = task.collate(batch_rows)
            with autocast(dtype, tunable.device):
                loss = task.per_example_loss(tunable.model, batch).mean()
            (loss + pulls.loss()).backward()
            pulls.before_clipping()
            if settings.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            pulls.after_clipping()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total_loss += float(loss.detach())
            total_flops += flops.step(*batch["input_ids"].shape)
    return TrainResult(
        loss=total_loss / num_steps, steps=num_steps, flops=total_flops, cpu_s=time.process_time() - started
    )


def evaluate(tunable: Tunable, task: Task, batches: Sequence[np.ndarray], *, dtype: str, flops: StepFlops) -> Scores:
    """Return the scores of the model as it stands, summed over the batches in order."""
    started = time.process_time()
    tunable.model.eval()
    total = Scores(loss=0.0, correct=np.zeros(task.num_groups), count=np.zeros(task.num_groups))
    for rows in batches:
        with autocast(dtype, tunable.device):
            scores = task.score(tunable.model, rows)
        width = int(task.lengths(rows).max())
        total = total + scores + _spent(task, flops.step(len(rows), width))
    return total + _spent(task, 0.0, cpu_s=time.process_time() - started, steps=0)


def _spent(task: Task, flops: float, *, cpu_s: float = 0.0, steps: int = 1) -> Scores:
    zeros = np.zeros(task.num_groups)
    return Scores(loss=0.0, correct=zeros, count=zeros, cpu_s=cpu_s, flops=flops, steps=steps)


def new_optimizer(parameters: list[torch.Tensor], settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, without any state."""
    import torch

    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
