"""Before private training: are gradients of single examples what they should be, and does clipping bound them?

Hooks can fail in silence. HF peft's own prompt tuning, for one, computes its prompt once for a whole batch, and what
Opacus then takes for an example's gradient is the batch's mean: training runs, an epsilon is reported, and it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedpeft.core.errors import PrivacyError
from fedpeft.privacy.clipped_sum import noised_sum, sample_norms
from fedpeft.privacy.microbatch import Losses, OneByOne
from fedpeft.privacy.per_example import Hooked, only_training
from fedpeft.privacy.repairs import Repair

EXACT = 1e-5
"""Relative error that float32 arithmetic may make, in gradients and in sensitivity."""
MIXED = 5e-2
"""The same under bfloat16 autocast, whose numbers have 8 bits: a batch of another size or padding rounds otherwise."""
SMALLEST = 1e-3
"""Share of the whole gradient below which a tensor's error is held against that share instead of its own norm: some
gradients, such as that of a key's bias, are zero but for rounding."""
SHIFT = 0.02
"""Standard deviation of what is added to the trained tensors: at their first values many gradients are zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the self-test measured.

    Attributes:
        error: largest relative error of a trained tensor's gradients against those computed one by one.
        sensitivity: largest ||f(D) - f(D without one example)|| / C, where every example is clipped.
        takes_part: for each tensor whether the loss depends on it; others get neither gradient nor noise.
    """

    error: float
    sensitivity: float
    takes_part: tuple[bool, ...]

    def check(self, what: str, tolerance: float) -> None:
        """Refuse what is not sound.

        Args:
            what: method and model.
            tolerance: `EXACT` or `MIXED`.

        Raises:
            PrivacyError: gradients are wrong, or one example moves the sum by more than the clip norm.
        """
        if not self.error <= tolerance:
            raise PrivacyError(
                f"{what} fails the privacy self-test: gradients of single examples are wrong by {self.error:.0e} of "
                f"their size, {tolerance:.0e} is allowed (set privacy.mode=microbatch)"
            )
        if not self.sensitivity <= 1 + tolerance:
            raise PrivacyError(
                f"{what} fails the privacy self-test: one example moves a step by {self.sensitivity:.4g} clip norms "
                "(set privacy.mode=microbatch)"
            )


def self_test(
    model: nn.Module,
    parameters: Sequence[torch.Tensor],
    losses: Losses,
    rows: np.ndarray,
    *,
    repairs: Callable[[], Sequence[Repair]],
    what: str,
) -> Findings:
    """Compare gradients from hooks with those computed one by one, and measure the sensitivity of their clipped sum.

    The model is left as it was. No dropout is drawn meanwhile: two passes would draw different ones.

    Args:
        model: the model, with the trained tensors' ``requires_grad`` set.
        parameters: the trained tensors.
        losses: loss of each row.
        rows: some rows, at least two.
        repairs: makes what stands beside Opacus' hooks.
        what: method and model, for the message.

    Raises:
        PrivacyError: hooks cannot be put on the model at all.
    """
    with shifted(parameters), only_training(model, ()):
        one_by_one = [OneByOne(model, parameters, losses).gradients(int(row)) for row in rows]
        takes_part = tuple(any(each[i] is not None for each in one_by_one) for i in range(len(parameters)))
        live = [value for value, part in zip(parameters, takes_part, strict=True) if part]
        right = _stacked(one_by_one, parameters, takes_part)
        norms = sample_norms(right)
        # So that every example that has a gradient is clipped, and moves the sum by just this much.
        clip_norm = 0.5 * float(norms[norms > 0].min()) if bool((norms > 0).any()) else 1.0
        try:
            with Hooked(model, live, losses, repairs()) as hooked, only_training(model, hooked.watched):
                error = _error(hooked.gradients(rows), right)
                sensitivity = measured_sensitivity(hooked.gradients, live, rows, clip_norm)
        except Exception as cause:
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
            raise PrivacyError(f"{what} cannot be watched by hooks: {reason} (set privacy.mode=microbatch)") from cause
    return Findings(error=error, sensitivity=sensitivity, takes_part=takes_part)


def parts_that_learn(
    model: nn.Module, parameters: Sequence[torch.Tensor], losses: Losses, row: int
) -> tuple[bool, ...]:
    """Return for each tensor whether a row's loss depends on it."""
    with only_training(model, ()):
        return tuple(one is not None for one in OneByOne(model, parameters, losses).gradients(row))


def measured_sensitivity(
    gradients: Callable[[np.ndarray], Sequence[torch.Tensor]],
    parameters: Sequence[torch.Tensor],
    rows: np.ndarray,
    clip_norm: float,
) -> float:
    """Return the largest ``||f(D) - f(D without i)|| / C`` over all rows i of D; f is the step's sum without noise.

    Args:
        gradients: gradients of single examples.
        parameters: the trained tensors.
        rows: D.
        clip_norm: C.
    """

    def summed(some: np.ndarray) -> torch.Tensor:
        sums = noised_sum(parameters, [gradients(some)], clip_norm=clip_norm, noise_multiplier=0.0, noise=None)
        return torch.cat([one.flatten() for one in sums]).double()

    whole = summed(rows)
    moved = [float((whole - summed(np.delete(rows, i))).norm()) / clip_norm for i in range(len(rows))]
    # Unlike Python's own, this maximum is NaN where any of them is.
    return float(np.max(moved))


@contextmanager
def shifted(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Move tensors away from where they start for a while."""
    before = [(value, value.detach().clone()) for value in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for value, start in before:
                value.add_(torch.randn(start.shape, generator=generator).to(value.device) * SHIFT)
        yield
    finally:
        with torch.no_grad():
            for value, start in before:
                value.copy_(start)


def _stacked(
    one_by_one: Sequence[Sequence[torch.Tensor | None]], parameters: Sequence[torch.Tensor], takes_part: Sequence[bool]
) -> list[torch.Tensor]:
    """Return the gradients tensor by tensor, (examples, *shape), those that take no part left out."""
    stacked = []
    for i, value in enumerate(parameters):
        if takes_part[i]:
            each = [torch.zeros_like(value) if one[i] is None else one[i] for one in one_by_one]
            stacked.append(torch.stack(each))  # type: ignore[arg-type]
    return stacked


def _error(got: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    floor = SMALLEST * float(torch.stack([one.norm() for one in right]).norm())
    wrong = [float((one.float() - other).norm()) for one, other in zip(got, right, strict=True)]
    return float(np.max([size / max(float(other.norm()), floor) for size, other in zip(wrong, right, strict=True)]))
