"""Text classification: what the model sees, and the loss by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft.tasks.base import Scores
from fedpeft.tasks.models import load_tokenizer
from fedpeft.tasks.text_classification import TextClassification

SINGLE = [("w0 w1 w2",), ("w3",), ("nothing w4 w5 w6 w7",)]
PAIRS = [("w0 w1", "w2"), ("w3", "w4 w5 w6")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(maker.write_model(tmp_path_factory.mktemp("text") / "model")))


def encode(tokenizer: Any, texts: list[tuple[str, ...]], max_length: int = 16) -> TextClassification:
    count = len(texts)
    return TextClassification.encode(texts, np.arange(count) % 2, np.arange(count) % 2, 2, tokenizer, max_length)


class Fixed(nn.Module):
    """Returns given logits, in half precision as a bfloat16 base does."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits, dtype=torch.bfloat16)
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        self.seen = inputs
        return SimpleNamespace(logits=self.logits)


def test_tokens_lie_flat_with_offsets(tokenizer: Any) -> None:
    """[CLS] 2, words from 4, [SEP] 3, unknown 1: lengths 5, 3, 7."""
    task = encode(tokenizer, SINGLE)
    assert task.offsets.tolist() == [0, 5, 8, 15]
    assert task.tokens.tolist() == [2, 4, 5, 6, 3, 2, 7, 3, 2, 1, 8, 9, 10, 11, 3]
    assert task.lengths(np.array([2, 0])).tolist() == [7, 5]
    assert task.types is None
    assert (task.tokens.dtype, task.labels.dtype, task.pad_id) == (np.int32, np.int64, 0)


def test_long_texts_are_cut(tokenizer: Any) -> None:
    assert encode(tokenizer, SINGLE, 4).offsets.tolist() == [0, 4, 7, 11]


def test_collate_pads_to_the_longest_of_the_batch(tokenizer: Any) -> None:
    batch = encode(tokenizer, SINGLE).collate(np.array([1, 0]))
    assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), torch.int64
    )
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0, 0], [2, 4, 5, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]


def test_pairs_have_token_types_where_the_model_has_them(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "token_type_ids" not in encode(tokenizer, PAIRS).collate(np.array([0, 1]))
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
    assert encode(tokenizer, SINGLE).types is None
    task = encode(tokenizer, PAIRS)
    batch = task.collate(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[2, 4, 5, 3, 6, 3, 0], [2, 7, 3, 8, 9, 10, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]


def test_loss_is_cross_entropy_by_hand(tokenizer: Any) -> None:
    """Logits (0, 0): ln 2; (2, 0), label 1: ln(1 + e^2); (0, 0.5), label 0: ln(1 + e^0.5). Not averaged, float32."""
    task, model = encode(tokenizer, SINGLE), Fixed([[0, 0], [2, 0], [0, 0.5]])
    loss = task.per_example_loss(model, task.collate(np.arange(3)))
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), [np.log(2), np.log1p(np.exp(2)), np.log1p(np.exp(0.5))], rtol=1e-6)
    assert "labels" not in model.seen


def test_scores_by_group_by_hand(tokenizer: Any) -> None:
    """Labels 0 1 0, groups 0 1 0; answers 1, 1, 0: group 0 has 1 of 2 right, group 1 has 1 of 1."""
    task, model = encode(tokenizer, SINGLE), Fixed([[0, 1], [0, 1], [1, 0]])
    scores = task.score(model, np.arange(3))
    assert scores.correct.tolist() == [1.0, 1.0]
    assert scores.count.tolist() == [2.0, 1.0]
    assert scores.loss == pytest.approx(np.log1p(np.e) + 2 * np.log1p(np.exp(-1)), rel=1e-6)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.mean_loss == pytest.approx(scores.loss / 3)


def test_a_group_that_is_absent_counts_nothing(tokenizer: Any) -> None:
    scores = encode(tokenizer, SINGLE).score(Fixed([[1, 0]]), np.array([0]))
    assert (scores.correct.tolist(), scores.count.tolist()) == ([1.0, 0.0], [1.0, 0.0])


def test_scores_add_up() -> None:
    spent = {"num_examples": 3, "cpu_s": 0.5, "flops": 10.0, "steps": 1}
    one = Scores(loss=1.0, correct=np.array([1.0, 0.0]), count=np.array([2.0, 1.0]), **spent)
    spent = {"num_examples": 4, "cpu_s": 0.25, "flops": 5.0, "steps": 2}
    other = Scores(loss=2.5, correct=np.array([0.0, 3.0]), count=np.array([0.0, 4.0]), **spent)
    total = one + other
    assert (total.loss, total.cpu_s, total.flops, total.steps, total.num_examples) == (3.5, 0.75, 15.0, 3, 7)
    assert (total.correct.tolist(), total.count.tolist()) == ([1.0, 3.0], [2.0, 5.0])
    assert total.accuracy == pytest.approx(4 / 7)
    assert total.mean_loss == 0.5
    assert one.correct.tolist() == [1.0, 0.0]
