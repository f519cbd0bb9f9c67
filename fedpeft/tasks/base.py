"""The contract of a task, and the sums that evaluation adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

Batch = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Sums over evaluated examples; adding two gives the sums over both.

    What is counted is an answer: the class of an example, or a token of a text. Sums over all answers make the mean
    loss, and with it perplexity, exact over batches and parts of any size.

    Attributes:
        loss: sum of the losses of all answers.
        correct: number of right answers by group, (num_groups,) float64.
        count: number of answers by group, (num_groups,) float64.
        num_examples: examples that were evaluated.
        cpu_s: CPU seconds spent.
        flops: floating-point operations of the forward passes.
        steps: batches.
    """

    loss: float
    correct: np.ndarray
    count: np.ndarray
    num_examples: int = 0
    cpu_s: float = 0.0
    flops: float = 0.0
    steps: int = 0

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            loss=self.loss + other.loss,
            correct=self.correct + other.correct,
            count=self.count + other.count,
            num_examples=self.num_examples + other.num_examples,
            cpu_s=self.cpu_s + other.cpu_s,
            flops=self.flops + other.flops,
            steps=self.steps + other.steps,
        )

    @property
    def num_answers(self) -> int:
        """Answers that were counted: examples of a classification, learned tokens of a language model."""
        return int(self.count.sum())

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.sum() / self.count.sum())

    @property
    def mean_loss(self) -> float:
        """Mean loss of an answer; of a language model's, perplexity is its exponential."""
        return self.loss / self.num_answers


class Task(Protocol):
    """Turns rows of data into batches, and batches into losses and scores."""

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        ...

    @property
    def groups(self) -> np.ndarray:
        """Group of each row, int64 (n,)."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Class of each row, int64 (n,); zeros for texts without classes."""
        ...

    @property
    def pad_id(self) -> int:
        """Token that fills up batches."""
        ...

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each row, to sort batches by."""
        ...

    def collate(self, rows: np.ndarray) -> Batch:
        """Return the rows as one padded batch."""
        ...

    def per_example_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss of each example, (batch_size,) float32.

        Never a mean over the batch, which would tie examples together.
        """
        ...

    def score(self, model: nn.Module, rows: np.ndarray) -> Scores:
        """Return the sums over one batch of rows, without gradients."""
        ...
