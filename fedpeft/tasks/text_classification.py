"""Text classification: one sentence or a pair, one label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.core.errors import DataError
from fedpeft.tasks.base import Batch, Scores
from fedpeft.tasks.placement import beside

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class TextClassification:
    """Tokenised texts with their labels, and cross-entropy on them.

    Tokens lie in one flat array with offsets: forked workers then share it page by page, where lists of Python
    integers would be copied as soon as they are touched.

    Attributes:
        tokens: (total,) int32, all texts one after the other.
        types: (total,) int8 segment numbers of pairs, None where the model has none.
        offsets: (n + 1,) int64, text i is ``tokens[offsets[i]:offsets[i + 1]]``.
        labels: (n,) int64.
        groups: (n,) int64, e.g. the domain; all 0 without groups.
        num_groups: number of groups.
        pad_id: token that fills up.
    """

    tokens: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    num_groups: int
    pad_id: int

    @classmethod
    def encode(
        cls,
        texts: Sequence[tuple[str, ...]],
        labels: np.ndarray,
        groups: np.ndarray,
        num_groups: int,
        tokenizer: Any,
        max_length: int,
    ) -> TextClassification:
        """Tokenise texts (single sentences or pairs), cut to ``max_length`` tokens.

        Raises:
            DataError: the tokenizer has no token to pad batches with.
        """
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad_id is None:
            raise DataError(
                "the model's tokenizer has neither a padding nor an end token (set pad_token in its "
                "tokenizer_config.json)"
            )
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
        ids = encoded["input_ids"]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
        types = encoded.get("token_type_ids") if len(columns) > 1 else None
        return cls(
            tokens=np.concatenate([np.asarray(one, dtype=np.int32) for one in ids]),
            types=np.concatenate([np.asarray(one, dtype=np.int8) for one in types]) if types else None,
            offsets=offsets,
            labels=np.asarray(labels, dtype=np.int64),
            groups=np.asarray(groups, dtype=np.int64),
            num_groups=num_groups,
            pad_id=pad_id,
        )

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each row."""
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def collate(self, rows: np.ndarray) -> Batch:
        """Return the rows as tensors, padded to the longest.

        ``input_ids``, ``attention_mask`` and, for pairs, ``token_type_ids``: (batch, longest) int64; ``labels``:
        (batch,) int64.
        """
        import torch

        width = int(self.lengths(rows).max())
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        types = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            span = slice(self.offsets[row], self.offsets[row + 1])
            length = span.stop - span.start
            ids[i, :length] = self.tokens[span]
            mask[i, :length] = 1
            if self.types is not None:
                types[i, :length] = self.types[span]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": self.labels[rows]}
        if self.types is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}

    def per_example_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return cross-entropy of each example, (batch,) float32."""
        from torch.nn.functional import cross_entropy

        batch = beside(model, batch)
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="none")

    def score(self, model: nn.Module, rows: np.ndarray) -> Scores:
        """Return loss and right answers by group, summed over the rows."""
        import torch
        from torch.nn.functional import cross_entropy

        batch = beside(model, self.collate(rows))
        with torch.inference_mode():
            logits = _logits(model, batch)
            loss = cross_entropy(logits, batch["labels"], reduction="sum")
            hits = (logits.argmax(-1) == batch["labels"]).cpu().numpy()
        groups = self.groups[rows]
        return Scores(
            loss=float(loss),
            correct=np.bincount(groups, weights=hits, minlength=self.num_groups),
            count=np.bincount(groups, minlength=self.num_groups).astype(np.float64),
            num_examples=len(rows),
        )


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: torch.Tensor = model(**inputs).logits.float()
    return logits
