"""What the server puts on record of an evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedpeft.server.evaluate import evaluate_global, figures
from fedpeft.tasks.base import Scores


def _scores(loss: float, correct: tuple[float, float], count: tuple[float, float], examples: int = 1) -> Scores:
    return Scores(loss=loss, correct=np.array(correct), count=np.array(count), num_examples=examples)


def test_a_classification_has_accuracy() -> None:
    """3 of 4 right in a, 1 of 6 in b."""
    found = figures(_scores(5.0, (3, 1), (4, 6)), ("a", "b"), "classification")
    assert found == {"accuracy": 0.4, "loss": 0.5, "accuracy/a": 0.75, "accuracy/b": 1 / 6}


def test_perplexity_is_that_of_all_tokens_whatever_the_parts() -> None:
    """Parts of 1 and 3 tokens with losses 1 ln 16 and 3 ln 2: mean (4 + 3) / 4 ln 2, perplexity 2^1.75 = 3.364. The
    mean of the parts' own perplexities would be 9."""
    parts = {1: _scores(3 * math.log(2), (1, 0), (2, 1)), 0: _scores(math.log(16), (0, 0), (1, 0))}
    metrics, _ = evaluate_global(
        {}, num_shards=2, shard_map=lambda _, __: iter(parts.items()), group_names=("a", "b"),
        task_kind="causal_lm", server_round=1, observers=(),
    )  # fmt: skip
    assert metrics == pytest.approx(
        {
            "perplexity": 2**1.75,
            "token_accuracy": 0.25,
            "loss": 1.75 * math.log(2),
            "token_accuracy/a": 1 / 3,
            "token_accuracy/b": 0.0,
        }
    )
