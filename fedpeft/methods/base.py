"""The contract of a method, and what attaching one gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedpeft.core.types import Tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD_MODES = ("share", "local", "freeze")


def _leave(scaling: float, sent: frozenset[str]) -> None:
    """Methods that nothing changes from round to round do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """A frozen model with its trainable tensors, live: writing to them changes the model.

    Attributes:
        model: the model, every other parameter frozen.
        shared: what travels, by the name HF peft saves it under, in sorted order.
        local: what trains but stays on the client (a ``local`` head).
        head_keys: names of the classification head among ``shared`` and ``local``.
        rank: LoRA rank, None for methods without one.
        configure: called when shared tensors were loaded, with the scaling of their product (0 for the method's own at
            this rank) and the names of those that the server sent.
    """

    model: nn.Module
    shared: Mapping[str, torch.Tensor]
    local: Mapping[str, torch.Tensor]
    head_keys: frozenset[str]
    rank: int | None
    configure: Callable[[float, frozenset[str]], None] = _leave

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def trainable(self) -> list[torch.Tensor]:
        """Every tensor the optimiser updates, in a fixed order."""
        return [*self.shared.values(), *self.local.values()]


class Method(Protocol):
    """Makes a frozen model tunable."""

    @property
    def traits(self) -> frozenset[str]:
        """What strategies may count on: some of ``factors``, ``ranks``, ``layers``, ``sparse``, ``core``."""
        ...

    @property
    def rank(self) -> int | None:
        """LoRA rank, None for methods without one."""
        ...

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Insert the adapter into ``model``, freeze the rest.

        Args:
            model: a loaded Hugging Face model; it is changed in place.
            head: ``share``, ``local`` or ``freeze``: what becomes of the classification head.

        Raises:
            ConfigError: the model lacks what the method needs.
        """
        ...

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write the adapter in Hugging Face PEFT format: it loads with ``PeftModel.from_pretrained``.

        Args:
            tensors: what travels.
            folder: where to write.
            base_model: folder or hub id of the base model, for whoever loads the adapter.
            head_keys: names of the model's head, whether it travels or not.
        """
        ...


def load_tensors(live: Mapping[str, torch.Tensor], tensors: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into live tensors of the same names; LoRA factors take the rank of what comes."""
    import torch

    with torch.no_grad():
        for key, target in live.items():
            # Wire arrays are read-only views of a message, which torch warns about even where it only reads.
            value = torch.from_numpy(np.array(tensors[key]))
            if value.shape == target.shape:
                target.copy_(value)
            else:
                target.data = value.to(target.device, target.dtype)


def extract_tensors(live: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies of live tensors as numpy arrays, in sorted order."""
    return {key: live[key].detach().cpu().numpy().copy() for key in sorted(live)}
