"""The checks on measures by themselves, where the guard's other rules do not stand in for them."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict

from fedpeft.core.errors import WireError
from fedpeft.core.metrics import (
    LAYER_SCORES,
    MAX_GROUPS,
    MAX_LAYERS,
    TRAIN_METRICS,
    read_evaluation,
    read_layer_scores,
    read_metrics,
)

EVALUATION = {"num-examples": 4, "eval-loss": 1.0, "eval-accuracy": 0.5, "group-correct": [2.0], "group-count": [4.0]}


def content(metrics: dict[str, Any]) -> RecordDict:
    return RecordDict({"metrics": MetricRecord(metrics)})


def test_sound_measures_come_back_as_they_are() -> None:
    sound = {name: 1 if name == "num-examples" else 0.5 for name in TRAIN_METRICS}
    assert read_metrics(content(sound), 1) == sound
    assert read_evaluation(content(EVALUATION), 4) == EVALUATION
    without = {name: EVALUATION[name] for name in ("num-examples", "eval-loss", "eval-accuracy")}
    assert read_evaluation(content(without), 4) == without


@pytest.mark.parametrize("value", [1e18, -1e18, 10**18])
def test_the_bound_on_numbers_is_inclusive(value: float) -> None:
    assert read_metrics(content({"num-examples": 1, "train-loss": value}), 1)["train-loss"] == value
    with pytest.raises(WireError, match="train-loss must be a number within 1e\\+18"):
        read_metrics(content({"num-examples": 1, "train-loss": value * 1.001}), 1)


def test_the_number_of_groups_is_bounded() -> None:
    most = {"group-correct": [0.0] * MAX_GROUPS, "group-count": [1.0] * MAX_GROUPS}
    assert read_evaluation(content(EVALUATION | most), 4)
    with pytest.raises(WireError, match=f"at most {MAX_GROUPS}"):
        read_evaluation(content(EVALUATION | {name: [*values, 0.0] for name, values in most.items()}), 4)


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_accuracy_may_be_nothing_or_all(accuracy: float) -> None:
    assert read_evaluation(content(EVALUATION | {"eval-accuracy": accuracy}), 4)


def test_a_refusal_does_not_repeat_a_list() -> None:
    with pytest.raises(WireError, match=r"train-loss must be a number .* got a list$"):
        read_metrics(content({"num-examples": 1, "train-loss": [0.5] * 1000}), 1)


def test_layer_scores_come_as_numbers_in_order_or_not_at_all() -> None:
    assert read_layer_scores(content({"num-examples": 1})) == ()
    assert read_layer_scores(content({LAYER_SCORES: [2.5, -1.0, 1e18]})) == (2.5, -1.0, 1e18)
    assert len(read_layer_scores(content({LAYER_SCORES: [1.0] * MAX_LAYERS}))) == MAX_LAYERS
    assert LAYER_SCORES not in read_metrics(content({"num-examples": 1, LAYER_SCORES: [1.0]}), 1)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (1.0, "must be a list of at most 4096 numbers"),
        ([1.0] * (MAX_LAYERS + 1), "must be a list of at most 4096 numbers"),
        ([1.0, float("nan")], r"layer-scores\[1\] must be a number within 1e\+18, got nan"),
        ([float("inf")], r"layer-scores\[0\] must be a number within 1e\+18, got inf"),
        ([1.0, 2.0, -1.1e18], r"layer-scores\[2\] must be a number"),
    ],
)
def test_unsound_layer_scores_are_refused(scores: Any, reason: str) -> None:
    with pytest.raises(WireError, match=reason) as caught:
        read_layer_scores(content({LAYER_SCORES: scores}))
    assert caught.value.check == "metrics"
