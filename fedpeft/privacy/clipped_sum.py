"""The sum of DP-SGD (Abadi et al. 2016, arXiv:1607.00133): each example's gradient is clipped, noise is added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fedpeft.privacy.noised_mean import Noise

Samples = Sequence[torch.Tensor]
"""Gradients of single examples: for each trained tensor one of shape (examples, *its shape)."""


def sample_norms(samples: Samples) -> torch.Tensor:
    """Return each example's gradient norm over all tensors jointly, (examples,) float32."""
    squares = [one.float().flatten(1).square().sum(1) for one in samples]
    return torch.stack(squares).sum(0).sqrt()


def add_clipped(sums: Sequence[torch.Tensor], samples: Samples, clip_norm: float) -> None:
    """Add each example's clipped gradient to the sums, in place.

        sum <- sum + g_i min(1, C / ||g_i||),   ||g_i|| over all tensors jointly

    An example whose gradient is not finite adds nothing, so that it can move the sum by at most C like any other.

    Args:
        sums: float32, of the trained tensors' shapes.
        samples: gradients of single examples.
        clip_norm: C, positive.
    """
    norms = sample_norms(samples)
    # A little less than C, by more than float32 rounds: the sum of what is clipped must not exceed it.
    factors = (clip_norm * (1 - 1e-6) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
    finite = torch.isfinite(norms)
    everyone = bool(finite.all())
    for total, one in zip(sums, samples, strict=True):
        flat = one.float().flatten(1)
        # Zero times infinity would be NaN.
        kept, weights = (flat, factors) if everyone else (flat[finite], factors[finite])
        total.add_((weights @ kept).view_as(total))


def noised_sum(
    parameters: Sequence[torch.Tensor],
    parts: Iterable[Samples],
    *,
    clip_norm: float,
    noise_multiplier: float,
    noise: Noise | None,
) -> list[torch.Tensor]:
    """Return the sum of all examples' clipped gradients with Gaussian noise of standard deviation z C on each number.

    Without any part it is the noise alone. Noise is drawn and added in float64 and the sum is rounded once, so that its
    last bits, and the tails that float32 could not reach, are not the sum's without noise.

    Args:
        parameters: the trained tensors.
        parts: gradients of a batch, some examples at a time.
        clip_norm: C, the sum's L2 sensitivity under adding or removing one example.
        noise_multiplier: z; 0 for none.
        noise: where the noise comes from; may be None only without noise.

    Raises:
        ValueError: there is noise to add and nothing that it comes from.
    """
    if noise_multiplier and noise is None:
        raise ValueError("a noise multiplier above 0 needs a source of noise (privacy.noise.SecureNormal)")
    sums = [torch.zeros_like(value, dtype=torch.float32) for value in parameters]
    for samples in parts:
        add_clipped(sums, samples, clip_norm)
    if noise_multiplier and noise is not None:
        std = noise_multiplier * clip_norm
        for total in sums:
            drawn = torch.from_numpy(noise.draw(tuple(total.shape), std=std))
            total.copy_(total.double() + drawn.to(total.device))
    return sums
