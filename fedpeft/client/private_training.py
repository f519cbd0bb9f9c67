"""Local training under example-level privacy: DP-SGD in place of plain steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.client.private_repairs import repairs_for
from fedpeft.client.pulls import Pulls
from fedpeft.client.trainer import TrainResult, TrainSettings, autocast, new_optimizer
from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.device_profiles.checkpointing import checkpointed
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.methods.base import Tunable
from fedpeft.privacy.example_level import ExampleLevelRun
from fedpeft.privacy.noise import SecureCoin, SecureNormal
from fedpeft.privacy.noised_mean import Noise
from fedpeft.privacy.poisson_batches import Coins, pieces, poisson_batches
from fedpeft.tasks.base import Task
from fedpeft.tasks.placement import device_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedpeft.privacy.clipped_sum import Samples
    from fedpeft.privacy.microbatch import Losses

TESTED_ROWS = 3
"""Examples that the self-test looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Where a private training's randomness comes from.

    Attributes:
        coins: who is in a batch.
        noise: what is added to the sums; None only where the noise multiplier is 0.
    """

    coins: Coins
    noise: Noise | None

    @classmethod
    def secure(cls) -> Chance:
        """Return chance from the operating system, different in every call."""
        return cls(coins=SecureCoin(), noise=SecureNormal())


def train_private(
    tunable: Tunable,
    task: Task,
    rows: np.ndarray,
    settings: TrainSettings,
    run: ExampleLevelRun,
    *,
    dtype: str,
    flops: StepFlops,
    parameters: Sequence[torch.Tensor],
    takes_part: Sequence[bool],
    pulls: Pulls | None = None,
    chance: Chance | None = None,
) -> TrainResult:
    """Train the adapter in place on ``rows`` by DP-SGD; see ``ExampleLevel``.

    A batch that is larger than the expected one is run in pieces, sorted by length, so that a step needs the memory of
    a plain one; a batch of nobody is a step of noise alone. The gradient norm is not clipped a second time. Dropout is
    drawn from torch's global generator, which is seeded from the operating system.

    Args:
        tunable: the model with its live tensors.
        task: batches and losses.
        rows: rows of the task to train on.
        settings: optimiser.
        run: clip norm, noise, steps and sampling of this client.
        dtype: dtype of the products.
        flops: cost of a step.
        parameters: what the optimiser updates.
        takes_part: for each of them whether the loss depends on it, as the self-test found; others stay as they are.
        pulls: what else pulls on the gradients; added after the noise, because none of it depends on examples.
        chance: coins and noise, None for the operating system's. Anything else is for tests.

    Returns:
        costs; the loss is NaN, because it is not private and must not be sent.
    """
    import torch

    pulls = pulls or Pulls()
    chance = chance or Chance.secure()
    live = [value for value, part in zip(parameters, takes_part, strict=True) if part]
    started = time.process_time()
    torch.seed()
    optimizer = new_optimizer(live, settings)
    tunable.model.train()
    total_flops = 0.0
    alone = _per_example(tunable.model, live, losses_of(task, dtype), run.settings.mode)
    with checkpointed(tunable.model, settings.gradient_checkpointing), alone as samples:
        for batch in poisson_batches(rows, run.batch_size, run.steps, chance.coins):
            parts = pieces(batch, task.lengths(batch), run.batch_size)
            _take_step(live, samples(parts), run, chance.noise)
            _pull(pulls)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total_flops += sum(flops.step(len(part), int(task.lengths(part).max())) for part in parts)
    cpu_s = time.process_time() - started
    return TrainResult(loss=float("nan"), steps=run.steps, flops=total_flops, cpu_s=cpu_s)


def _take_step(
    live: Sequence[torch.Tensor], parts: Iterable[Samples], run: ExampleLevelRun, noise: Noise | None
) -> None:
    """Give each parameter the noised mean of the clipped gradients as its gradient."""
    from fedpeft.privacy.clipped_sum import noised_sum

    sums = noised_sum(live, parts, clip_norm=run.settings.clip_norm, noise_multiplier=run.noise_multiplier, noise=noise)
    for value, total in zip(live, sums, strict=True):
        value.grad = None
        # Not assigned: what a method hangs on a gradient (AdaLoRA's regulariser) joins it here, after the noise.
        value.backward(total / run.expected_batch)


def _pull(pulls: Pulls) -> None:
    extra = pulls.loss()
    if not isinstance(extra, float):
        extra.backward()
    pulls.before_clipping()
    pulls.after_clipping()


@contextmanager
def _per_example(
    model: nn.Module, live: Sequence[torch.Tensor], losses: Losses, mode: str
) -> Iterator[Callable[[Sequence[np.ndarray]], Iterable[Samples]]]:
    """Yield what makes gradients of single examples of a batch's pieces; hooks are off the model afterwards."""
    from fedpeft.privacy.microbatch import OneByOne
    from fedpeft.privacy.per_example import Hooked

    if mode == "microbatch":
        alone = OneByOne(model, live, losses)
        yield lambda parts: (one for part in parts for one in alone.samples(part))
        return
    with Hooked(model, live, losses, repairs_for(model)) as hooked:
        yield hooked.samples


def admit(
    tunable: Tunable,
    task: Task,
    rows: np.ndarray,
    parameters: Sequence[torch.Tensor],
    *,
    mode: str,
    dtype: str,
    what: str,
) -> tuple[bool, ...]:
    """Run the self-test of a method on a model, and return which tensors take part in the loss.

    Args:
        tunable: the model with its live tensors, ``requires_grad`` set as in training.
        task: batches and losses.
        rows: examples to look at; the longest of the first ones are not sought out.
        parameters: what the optimiser would update.
        mode: ``hooks`` or ``microbatch``, for which there is nothing to test.
        dtype: dtype of the products.
        what: method and model, for messages.

    Raises:
        ConfigError: dropout would be drawn inside what hooks run twice.
        PrivacyError: hooks give wrong gradients here, or none.
    """
    from fedpeft.privacy.repairs import Whole
    from fedpeft.privacy.self_test import EXACT, MIXED, parts_that_learn, self_test

    losses, some = losses_of(task, dtype), rows[:TESTED_ROWS]
    if mode == "microbatch":
        return parts_that_learn(tunable.model, parameters, losses, int(some[0]))
    if any(isinstance(repair, Whole) and repair.draws for repair in repairs_for(tunable.model)):
        raise ConfigError(
            f"{what} draws dropout inside what privacy.mode=hooks must run twice (set model.dropout=0 and "
            "method.dropout=0, or privacy.mode=microbatch)"
        )
    # One example has nobody to be mixed up with: it is then held against itself, twice.
    some = some if len(some) > 1 else np.repeat(some, 2)
    findings = self_test(tunable.model, parameters, losses, some, repairs=lambda: repairs_for(tunable.model), what=what)
    findings.check(what, MIXED if dtype == "bfloat16" else EXACT)
    if not any(findings.takes_part):
        raise PrivacyError(f"{what} trains nothing that the loss depends on (choose another method)")
    return findings.takes_part


def losses_of(task: Task, dtype: str) -> Losses:
    """Return the function from a model and rows to the loss of each row, products in ``dtype``."""

    def losses(model: nn.Module, rows: np.ndarray) -> torch.Tensor:
        with autocast(dtype, device_of(model)):
            return task.per_example_loss(model, task.collate(rows))

    return losses
