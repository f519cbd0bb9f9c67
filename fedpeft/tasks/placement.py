"""Where a model computes, and batches beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.tasks.base import Batch

if TYPE_CHECKING:
    import torch
    from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are, all in one place; the CPU where it has none."""
    import torch

    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def beside(model: nn.Module, batch: Batch) -> Batch:
    """Return a batch where a model's parameters are; the same one if it is there already."""
    device = device_of(model)
    return {name: value.to(device) for name, value in batch.items()}
