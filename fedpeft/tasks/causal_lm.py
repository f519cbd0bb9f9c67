"""Causal language modelling: predict each next token of conversations or plain texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.tasks.base import Batch, Scores
from fedpeft.tasks.placement import beside
from fedpeft.tasks.token_loss import IGNORED, next_token_logits, token_losses
from fedpeft.tasks.writing import tokenise

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_SCORED = 2048
"""Tokens, padding included, whose logits evaluation holds at once."""
MAX_PROMPT = 64
"""Tokens of a prompt that is cut out of a text without turns."""


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Tokenised texts, which of their tokens are learned, and cross-entropy on those.

    Tokens lie in one flat array with offsets, as in ``TextClassification``.

    Attributes:
        tokens: (total,) int32, all texts one after the other.
        learned: (total,) bool, whether a token is to be predicted; never the first of a text.
        offsets: (n + 1,) int64, text i is ``tokens[offsets[i]:offsets[i + 1]]``.
        groups: (n,) int64, e.g. the speaker; all 0 without groups.
        num_groups: number of groups.
        pad_id: token that fills up.
        tokenizer: writes tokens out again, for samples.
    """

    tokens: np.ndarray
    learned: np.ndarray
    offsets: np.ndarray
    groups: np.ndarray
    num_groups: int
    pad_id: int
    tokenizer: Any

    @classmethod
    def encode(
        cls,
        texts: Sequence[Any],
        groups: np.ndarray,
        num_groups: int,
        tokenizer: Any,
        max_length: int,
        train_on: str = "assistant",
    ) -> CausalLM:
        """Tokenise conversations or plain texts, cut to ``max_length`` tokens; see `fedpeft.tasks.writing.tokenise`.

        Args:
            texts: a conversation ((role, content), ...) or a plain text (text,) for each row.
            groups: (n,) group of each row.
            num_groups: number of groups.
            tokenizer: a fast Hugging Face tokenizer.
            max_length: tokens a row.
            train_on: ``assistant`` learns the assistant's turns of conversations, ``all`` every token.

        Raises:
            DataError: no chat template, one that refuses a conversation, or a slow tokenizer.
        """
        found = tokenise(tokenizer, texts, max_length, train_on)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return cls(
            tokens=np.concatenate([ids for ids, _ in found]),
            learned=np.concatenate([learned for _, learned in found]),
            offsets=np.concatenate([[0], np.cumsum([len(ids) for ids, _ in found])]).astype(np.int64),
            groups=np.asarray(groups, dtype=np.int64),
            num_groups=num_groups,
            # Padding is masked and never learned, so any token will do.
            pad_id=0 if pad_id is None else int(pad_id),
            tokenizer=tokenizer,
        )

    @property
    def labels(self) -> np.ndarray:
        """Class of each row, int64 (n,): zeros, for texts have none."""
        return np.zeros(len(self.groups), dtype=np.int64)

    @property
    def num_learned(self) -> np.ndarray:
        """Number of learned tokens of each row, int64 (n,)."""
        sums = np.concatenate([[0], np.cumsum(self.learned, dtype=np.int64)])
        return np.diff(sums[self.offsets])

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each row."""
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def collate(self, rows: np.ndarray) -> Batch:
        """Return the rows as tensors, padded behind to the longest.

        ``input_ids``, ``attention_mask`` and ``labels``, (batch, longest) int64; labels are `IGNORED` where nothing
        is learned.
        """
        import torch

        width = int(self.lengths(rows).max())
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for i, row in enumerate(rows):
            span = slice(self.offsets[row], self.offsets[row + 1])
            length = span.stop - span.start
            ids[i, :length] = self.tokens[span]
            mask[i, :length] = 1
            labels[i, :length] = np.where(self.learned[span], self.tokens[span], IGNORED)
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(value) for name, value in arrays.items()}

    def per_example_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy over each example's learned tokens, (batch,) float32."""
        import torch

        batch = beside(model, batch)
        logits, targets, rows = next_token_logits(model, _inputs(batch), batch["labels"])
        losses = token_losses(logits, targets)
        count = torch.bincount(rows, minlength=len(batch["labels"]))
        return torch.zeros(len(count), device=losses.device).index_add(0, rows, losses) / count

    def score(self, model: nn.Module, rows: np.ndarray) -> Scores:
        """Return sums over the rows' learned tokens: loss, and right next tokens by group.

        Rows are taken some at a time, so that no more than `MAX_SCORED` tokens' logits are held at once.
        """
        step = max(1, MAX_SCORED // int(self.lengths(rows).max()))
        total = self._score(model, rows[:step])
        for start in range(step, len(rows), step):
            total = total + self._score(model, rows[start : start + step])
        return total

    def prompt(self, row: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what to continue and how the row itself goes on, both as token ids.

        The prompt is a conversation up to the assistant's first learned turn, or the first half of a text, at most
        `MAX_PROMPT` tokens.

        Args:
            row: its number.
            most: tokens of the continuation.
        """
        span = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        ids, learned = self.tokens[span], self.learned[span]
        first = int(np.argmax(learned))
        if first <= 1:
            first = max(1, min(len(ids) // 2, MAX_PROMPT))
            return ids[:first], ids[first : first + most]
        turn = ids[first : first + most]
        return ids[:first], turn[np.logical_and.accumulate(learned[first : first + most])]

    def _score(self, model: nn.Module, rows: np.ndarray) -> Scores:
        import torch

        batch = beside(model, self.collate(rows))
        with torch.inference_mode():
            logits, targets, owners = next_token_logits(model, _inputs(batch), batch["labels"])
            loss = float(token_losses(logits, targets).double().sum())
            hits = (logits.argmax(-1) == targets).cpu().numpy()
        groups = self.groups[rows][owners.cpu().numpy()]
        return Scores(
            loss=loss,
            correct=np.bincount(groups, weights=hits, minlength=self.num_groups),
            count=np.bincount(groups, minlength=self.num_groups).astype(np.float64),
            num_examples=len(rows),
        )


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
