"""Gradients of single examples from one backward pass of a batch, by Opacus' hooks and the repairs beside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn

from fedpeft.core.errors import PrivacyError
from fedpeft.privacy.microbatch import Losses
from fedpeft.privacy.repairs import Repair


class Hooked(AbstractContextManager["Hooked"]):
    """Watches a model while the context lasts.

    Args:
        model: the model; trained modules must be in training mode.
        parameters: the trained tensors that the loss depends on.
        losses: loss of each row.
        repairs: what Opacus cannot watch by itself.

    Raises:
        NotImplementedError: on entering, Opacus cannot watch a module.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[torch.Tensor], losses: Losses, repairs: Sequence[Repair]
    ) -> None:
        self._model = model
        self._parameters = list(parameters)
        self._losses = losses
        self._repairs = repairs
        self._opacus: _Opacus | None = None

    def __enter__(self) -> Hooked:
        try:
            for repair in self._repairs:
                repair.attach()
            self._opacus = _Opacus(self._model, [repair.module for repair in self._repairs if repair.replaces])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for repair in self._repairs:
            repair.detach()
        if self._opacus is not None:
            self._opacus.remove()
            self._opacus = None

    @property
    def watched(self) -> list[nn.Module]:
        """The modules that Opacus watches; it does so in training mode alone."""
        return [] if self._opacus is None else list(self._opacus.watched)

    def gradients(self, rows: np.ndarray) -> list[torch.Tensor]:
        """Return the gradients of each row's loss, for each trained tensor one of shape (rows, *its shape).

        Raises:
            PrivacyError: a tensor has no gradients of single examples, or not as many as there are rows.
        """
        try:
            loss = self._losses(self._model, rows)
            with warnings.catch_warnings():
                # True of every module that reads the frozen part alone, and of no consequence here.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                loss.sum().backward()
            return [self._taken(value, len(rows)) for value in self._parameters]
        finally:
            self._forget()

    def samples(self, parts: Iterable[np.ndarray]) -> Iterator[list[torch.Tensor]]:
        """Yield the gradients of each part of a batch."""
        for rows in parts:
            yield self.gradients(rows)

    def _taken(self, value: Any, count: int) -> torch.Tensor:
        repaired = [repair.found[value] for repair in self._repairs if value in repair.found]
        found = sum(repaired) if repaired else getattr(value, "grad_sample", None)
        if not isinstance(found, torch.Tensor) or found.shape != (count, *value.shape):
            got = f"{tuple(found.shape)}" if isinstance(found, torch.Tensor) else "none"
            raise PrivacyError(
                f"a trained tensor of shape {tuple(value.shape)} should have gradients of {count} examples, got {got}"
            )
        return found.detach()

    def _forget(self) -> None:
        for repair in self._repairs:
            repair.found.clear()
        if self._opacus is not None:
            self._opacus.forget()


class _Opacus(GradSampleHooks):  # type: ignore[misc]
    """Opacus' hooks without the modules that a repair watches."""

    def __init__(self, model: nn.Module, repaired: Sequence[nn.Module]) -> None:
        self._repaired = set(repaired)
        self._trained: list[Any] = [value for value in model.parameters() if value.requires_grad]
        self.watched: list[nn.Module] = []
        try:
            super().__init__(model, loss_reduction="sum", strict=False)
        except BaseException:
            self.remove()
            raise

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        if module in self._repaired:
            return
        own = [value for value in module.parameters(recurse=False) if value.requires_grad]
        if own:
            self.watched.append(module)
            yield module
            if type(module) not in self.GRAD_SAMPLERS:
                return
        for child in module.children():
            yield from self.iterate_submodules(child)

    def forget(self) -> None:
        """Drop what one backward pass left, also one that broke off."""
        for value in self._trained:
            value.grad = None
            value.grad_sample = None
            value._forward_counter = 0
            if hasattr(value, "_current_grad_sample"):
                del value._current_grad_sample
        for module in self.watched:
            for name in ("activations", "max_batch_len"):
                if hasattr(module, name):
                    delattr(module, name)

    def remove(self) -> None:
        """Take everything off the model."""
        self.forget()
        self.cleanup()


@contextmanager
def only_training(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put a model into evaluation mode but for some modules themselves, so that no dropout is drawn, for a while."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for module in modules:
            # Not train(), which would take the module's children along.
            module.training = True
        yield
    finally:
        for module, mode in before:
            module.training = mode
