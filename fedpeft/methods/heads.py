"""Classification heads: found by name, shared, kept local or frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD_NAMES = ("classifier", "score")
"""Names of sequence-classification heads in transformers. HF peft takes every module whose name ends so for the head,
DistilBERT's ``pre_classifier`` too."""


def head_module_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that make the model's classification head, () for a model without one."""
    return tuple(name for name, _ in model.named_children() if name.endswith(HEAD_NAMES))


def head_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the head's parameters by the name HF peft saves them under."""
    names = head_module_names(model)
    return {
        f"base_model.model.{name}.{key}": value
        for name in names
        for key, value in getattr(model, name).named_parameters()
    }
