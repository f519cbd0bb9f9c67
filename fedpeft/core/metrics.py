"""What replies measure: the names that are known, and the checks that every number passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict

from fedpeft.core.errors import WireError
from fedpeft.core.wire import MAX_METRIC, NUM_EXAMPLES

ROUND_METRICS = (
    NUM_EXAMPLES,
    "train-loss",
    "train-cpu-s",
    "train-flops",
    "train-steps",
    "adapter-bytes",
    "head-bytes",
)
"""What a client tells of every round that it trained, unless its privacy forbids."""
MEASURED_METRICS = ("down-s", "train-wall-s", "peak-memory-mb", "energy-j")
"""What a real device tells besides: seconds of the download and of its own work, MiB held at most, joules drawn."""
TRAIN_METRICS = frozenset({*ROUND_METRICS, *MEASURED_METRICS, "layer-share"})
EVALUATE_METRICS = frozenset({NUM_EXAMPLES, "eval-loss", "eval-accuracy", "eval-cpu-s", "eval-flops", "eval-steps"})
GROUP_METRICS = frozenset({"group-correct", "group-count"})
LAYER_SCORES = "layer-scores"
MAX_GROUPS = 2**16
MAX_LAYERS = 2**12

MAX_EXPONENT = 50.0


def perplexity(loss: float) -> float:
    """Return ``exp(loss)`` of a mean loss in nats: among how many equally likely tokens a model is undecided.

    Losses above 50 are taken for 50, which is 5e21: a larger number says no more, and infinity is no JSON.
    """
    return math.exp(min(loss, MAX_EXPONENT))


def read_metrics(content: RecordDict, max_examples: int) -> dict[str, float]:
    """Return the metrics of a training reply: known names, finite, bounded numbers, with a sound ``num-examples``.

    Raises:
        WireError: checks ``records``, ``metrics`` and ``weight``.
    """
    metrics = _metrics_of(content, TRAIN_METRICS | {LAYER_SCORES})
    metrics.pop(LAYER_SCORES, None)
    _check_numbers(metrics)
    _check_weight(metrics, max_examples)
    return metrics


def read_layer_scores(content: RecordDict) -> tuple[float, ...]:
    """Return the layer scores of a training reply, () without any.

    Raises:
        WireError: check ``metrics``: no list of at most 4,096 finite, bounded numbers.
    """
    scores = dict(next(iter(content.metric_records.values()))).get(LAYER_SCORES, [])
    if not isinstance(scores, list) or len(scores) > MAX_LAYERS:
        raise WireError("metrics", f"{LAYER_SCORES} must be a list of at most {MAX_LAYERS} numbers")
    _check_numbers({f"{LAYER_SCORES}[{i}]": score for i, score in enumerate(scores)})
    return tuple(float(score) for score in scores)


def read_evaluation(content: RecordDict, max_examples: int) -> dict[str, float | list[float]]:
    """Return the metrics of an evaluation reply: likewise, with a loss, an accuracy in 0..1 and sound counts by group.

    Raises:
        WireError: checks ``records``, ``metrics`` and ``weight``.
    """
    metrics = _metrics_of(content, EVALUATE_METRICS | GROUP_METRICS)
    _check_numbers({name: value for name, value in metrics.items() if name not in GROUP_METRICS})
    _check_weight(metrics, max_examples)
    if missing := sorted({"eval-loss", "eval-accuracy"} - set(metrics)):
        raise WireError("metrics", f"missing {missing}")
    if not 0 <= metrics["eval-accuracy"] <= 1:
        raise WireError("metrics", f"eval-accuracy must be in 0..1, got {metrics['eval-accuracy']!r}")
    _check_groups(metrics.get("group-correct", []), metrics.get("group-count", []), max_examples)
    return metrics


def _metrics_of(content: RecordDict, allowed: frozenset[str]) -> dict[str, Any]:
    if len(content.metric_records) != 1:
        raise WireError("records", f"expected one MetricRecord, got {len(content.metric_records)}")
    metrics = dict(next(iter(content.metric_records.values())))
    if unknown := sorted(set(metrics) - allowed):
        raise WireError("metrics", f"unknown metrics {unknown[:3]}")
    return metrics


def _check_numbers(metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        # Comparing, unlike math.isfinite, takes whole numbers of any size; NaN compares false.
        if type(value) not in (int, float) or not -MAX_METRIC <= value <= MAX_METRIC:
            got = f"a {type(value).__name__}" if isinstance(value, list) else repr(value)
            raise WireError(
                "weight" if name == NUM_EXAMPLES else "metrics",
                f"{name} must be a number within {MAX_METRIC:g}, got {got}",
            )


def _check_weight(metrics: Mapping[str, Any], max_examples: int) -> None:
    num_examples = metrics.get(NUM_EXAMPLES)
    if type(num_examples) is not int or not 1 <= num_examples <= max_examples:
        raise WireError("weight", f"{NUM_EXAMPLES} must be a whole number in 1..{max_examples}, got {num_examples!r}")


def _check_groups(correct: Any, count: Any, max_examples: int) -> None:
    if not (isinstance(correct, list) and isinstance(count, list) and len(correct) == len(count) <= MAX_GROUPS):
        raise WireError("metrics", f"group-correct and group-count must be lists of one length, at most {MAX_GROUPS}")
    if not all(0 <= right <= total <= max_examples for right, total in zip(correct, count, strict=True)):
        raise WireError(
            "metrics", "group-correct must be within 0..group-count, and group-count within the cap on examples"
        )
