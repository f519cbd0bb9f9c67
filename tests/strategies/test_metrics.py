"""Figures over clients, by hand."""

from __future__ import annotations

import math

import pytest

from fedpeft.core.metrics import perplexity
from fedpeft.core.types import ClientInfo, ClientUpdate
from fedpeft.strategies.metrics import (
    MOST_GROUPS,
    aggregate_client_evaluations,
    group_accuracies,
    mean_train_metrics,
    worst_decile,
)


def update(client_id: int, num_examples: int, **metrics: float) -> ClientUpdate:
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples)
    return ClientUpdate(
        client=client, tensors={}, num_examples=num_examples, metrics={"num-examples": num_examples, **metrics}
    )


def test_train_metrics_are_weighted_means_of_what_all_sent() -> None:
    """loss: (1 x 2 + 3 x 6) / 4 = 5; "own" came from one client only; examples are summed."""
    record = mean_train_metrics([update(0, 1, loss=2.0), update(1, 3, loss=6.0, own=1.0)])
    assert dict(record) == {"loss": 5.0, "num-examples": 4}
    assert isinstance(record["num-examples"], int)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.2, 0.8], 0.2),
        ([0.5], 0.5),
        ([i / 10 for i in range(10)], 0.0),
        ([0.3, 0.1] + [0.9] * 9, 0.2),
        ([0.4, 0.2] + [0.9] * 18, 0.3),
    ],
)
def test_worst_decile_by_hand(values: list[float], expected: float) -> None:
    """Up to 10 values: the lowest; 11: the lowest two, (0.1 + 0.3) / 2; 20: likewise, (0.2 + 0.4) / 2."""
    assert worst_decile(values) == pytest.approx(expected)


def test_group_accuracies_leave_empty_groups_out() -> None:
    assert group_accuracies("accuracy", ["a", "b", "c"], [3.0, 0.0, 1.0], [4.0, 0.0, 2.0]) == {
        "accuracy/a": 0.75,
        "accuracy/c": 0.5,
    }


def test_client_evaluations_weigh_clients_equally() -> None:
    """Accuracies 1, 0.5, 0: mean 0.5 although the first holds most; worst tenth of three: 0; losses 1, 2, 6: 3."""
    results = {
        2: {
            "num-examples": 1,
            "eval-accuracy": 0.0,
            "eval-loss": 6.0,
            "group-correct": [0.0, 0.0],
            "group-count": [1.0, 0.0],
        },
        0: {
            "num-examples": 1000,
            "eval-accuracy": 1.0,
            "eval-loss": 1.0,
            "group-correct": [600.0, 400.0],
            "group-count": [600.0, 400.0],
        },
        1: {
            "num-examples": 4,
            "eval-accuracy": 0.5,
            "eval-loss": 2.0,
            "group-correct": [2.0, 0.0],
            "group-count": [3.0, 1.0],
        },
    }
    record = aggregate_client_evaluations(results)
    assert record is not None
    assert dict(record) == {
        "client_accuracy_mean": 0.5, "client_accuracy_worst_decile": 0.0, "client_loss_mean": 3.0, "num-clients": 3.0,
        "group-correct": [602.0, 400.0], "group-count": [604.0, 401.0],
    }  # fmt: skip


def test_perplexities_are_worst_where_they_are_highest() -> None:
    """Losses ln 2, ln 4, ln 12: perplexities 2, 4, 12, mean 6, worst tenth of three 12; token accuracy 0.9 / 3."""
    results = {
        i: {"eval-loss": math.log(p), "eval-accuracy": a} for i, (p, a) in enumerate([(2, 0.5), (4, 0.3), (12, 0.1)])
    }
    record = aggregate_client_evaluations(results, "causal_lm")
    assert record is not None
    assert {name: value for name, value in record.items() if isinstance(value, float)} == pytest.approx(
        {
            "client_perplexity_mean": 6.0,
            "client_perplexity_worst_decile": 12.0,
            "client_token_accuracy_mean": 0.3,
            "client_loss_mean": math.log(96) / 3,
            "num-clients": 3.0,
        }
    )


def test_perplexity_of_a_claimed_loss_stays_a_number() -> None:
    """e^50 = 5.18e21 is the most; a loss of 1e18 would be infinite."""
    assert perplexity(math.log(47)) == pytest.approx(47)
    assert perplexity(1e18) == perplexity(50.0) == pytest.approx(5.1847e21, rel=1e-4)


def test_figures_by_group_are_left_out_where_groups_are_people() -> None:
    names = [f"user-{i}" for i in range(MOST_GROUPS + 1)]
    ones = [1.0] * len(names)
    assert len(group_accuracies("accuracy", names[:-1], ones[:-1], ones[:-1])) == MOST_GROUPS
    assert group_accuracies("accuracy", names, ones, ones) == {} == group_accuracies("accuracy", ["all"], [1.0], [1.0])


def test_no_evaluations_give_nothing() -> None:
    assert aggregate_client_evaluations({}) is None


def test_evaluations_without_groups_have_no_group_figures() -> None:
    record = aggregate_client_evaluations({0: {"eval-accuracy": 0.5, "eval-loss": 1.0}})
    assert record is not None
    assert record["client_accuracy_mean"] == 0.5
    assert not record.get("group-count")
