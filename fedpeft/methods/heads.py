"""Classification heads: found by name, shared, kept local or frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD_NAMES = ("classifier", "score")
"""Module names of sequence-classification heads in transformers, as HF peft lists them."""


def head_module_name(model: nn.Module) -> str | None:
    """Return the name of the model's classification head, None for a model without one."""
    return next((name for name in HEAD_NAMES if hasattr(model, name)), None)


def head_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the head's parameters by the name HF peft saves them under."""
    name = head_module_name(model)
    if name is None:
        return {}
    return {f"base_model.model.{name}.{key}": value for key, value in getattr(model, name).named_parameters()}
