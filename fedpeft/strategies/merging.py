"""What the rules share that add factors to the clients' frozen base (FLoRA, FedEx-LoRA, FLoRIST)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from fedpeft.core.products import merged_of
from fedpeft.core.types import ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft, StateValue


class Merging(FedPeft):
    """Keeps ``merge.`` factors from round to round: they travel, are evaluated and saved, and survive a checkpoint.

    A concrete rule sets ``_merged`` at the end of ``aggregate``, when nothing can fail any more.

    Args:
        **settings: those of ``FedPeft``.
    """

    merges = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._merged: Tensors = {}

    @abstractmethod
    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the new global tensors; see ``FedPeft.aggregate``."""

    def model_tensors(self, global_tensors: Tensors) -> Tensors:
        """Return the factors, with those that join the base."""
        return {**global_tensors, **self._merged}

    def state(self) -> dict[str, StateValue]:
        """Return what joins the base, as it travels."""
        return dict(self._merged)

    def load_state(self, state: Mapping[str, StateValue]) -> None:
        """Take back what ``state`` returned."""
        self._merged = merged_of(state)
