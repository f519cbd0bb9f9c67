"""Values of the wrong kind are refused with one line each, before anything heavy begins."""

from __future__ import annotations

import pytest
from toy import refusals

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "+client.foo=1",
            "client.foo is unknown: client has batch_size, gradient_checkpointing, local_epochs",
        ),
        ("+guard.foo=1", "guard.foo is unknown: guard has max_bytes, max_examples, max_norm, norm_factor"),
        (
            "+round.deadline=3",
            "round.deadline is unknown: round has buffer_size, deadline_s, max_staleness",
        ),
        ("client.weight_decay=x", "client.weight_decay must be a number >= 0, got 'x'"),
        ("task.client_test_fraction=1.5", "task.client_test_fraction must be a number in [0, 1), got 1.5"),
        ("model.dropout=2", "model.dropout must be a number in [0, 1) or null, got 2"),
        ("model.path=123", "model.path must be a text, got 123"),
        ("task.path=null", "task.path must be a text, got None"),
        ("task.group_column=3", "task.group_column must be a text or null, got 3"),
        ("task.text_columns=text", "task.text_columns must be a list of 1 to 2 names, got 'text'"),
        ("task.text_columns=[a,b,c]", "task.text_columns must be a list of 1 to 2 names, got ['a', 'b', 'c']"),
        ("task.held_out=null", "task.held_out must be a count, a share below 1 or the name of a split, got None"),
        ("task.kind=clm", "task.kind must be one of classification, causal_lm, got 'clm'"),
        ("+task.train_on=all", "task.train_on is unknown: task has client_test_fraction, extra_columns, group_column"),
        ("run_dir=''", "run_dir must be a text, got ''"),
        ("report=no", "report must be true or false, got 'no'"),
        ("round.deadline_s=true", "round.deadline_s must be a positive number, got True"),
        ("method.alpha=x", "alpha must be positive, got 'x' (set method.alpha)"),
        ("method.dropout=x", "dropout must be in [0, 1), got 'x' (set method.dropout)"),
        (
            "method.target_modules=[1]",
            "target_modules must list names or be all-linear, got [1] (set method.target_modules)",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.check(cfg.compose([override]))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_clients_cannot_evaluate_without_examples() -> None:
    with pytest.raises(ConfigError, match="leaves them no examples"):
        cfg.check(cfg.compose(["evaluate.clients_every=1", "task.client_test_fraction=0"]))


def test_what_the_pages_allow_passes() -> None:
    for overrides in (
        ["task.held_out=validation", "task.group_column=null", "model.dropout=null"],
        ["task.text_columns=[a,b]", "task.extra_columns=[c]", "task.client_test_fraction=0"],
    ):
        assert refusals(cfg.compose(overrides)) == []
        assert len(refusals(cfg.compose([*overrides, "task.kind=clm"]))) == 1


def test_an_override_is_judged_beside_the_members_that_are_chosen() -> None:
    """engine.address exists with engine=ray, num_classes_per_partition with partition=pathological."""
    sound = ["engine=ray", "engine.address=auto", "partition=pathological", "partition.num_classes_per_partition=3"]
    with pytest.raises(ConfigError) as caught:
        cfg.compose([*sound, "rondes=3"])
    assert caught.value.problems == ["rondes=3: Could not override 'rondes'. Did you mean rounds or round?"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("task.train_on=user", "task.train_on must be one of assistant, all, got 'user'"),
        ("task.samples=-1", "task.samples must be a whole number in 0..100, got -1"),
        ("task.text_column=null", "task.text_column must be a text, got None"),
        ("+task.label_column=label", "task.label_column is unknown: task has client_test_fraction, extra_columns"),
    ],
)
def test_each_kind_of_task_has_keys_of_its_own(override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.check(cfg.compose(["task=chitchat", override]))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)
