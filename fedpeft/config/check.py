"""Checks of a whole config, before anything heavy begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from fedpeft.config.build import build
from fedpeft.config.pairs import device_problems, pair_problems, rank_problems, time_problems
from fedpeft.config.values import Config, look_up
from fedpeft.core.errors import ConfigError


def check(config: Config) -> None:
    """Refuse a config that cannot run, with every problem found.

    Raises:
        ConfigError: one line for each problem.
    """
    problems = [*_range_problems(config), *_choice_problems(config), *_text_problems(config), *_unknown(config)]
    built: dict[str, Any] = {}
    for name in ("strategy", "method", "codec", "partition", "fleet", "selection", "engine"):
        node = config.get(name)
        if not isinstance(node, Mapping) or "_target_" not in node:
            problems.append(f"{name} must name a _target_, got {node!r} (choose one of conf/{name})")
            continue
        try:
            built[name] = build(node)
        except ConfigError as error:
            problems.extend(error.problems)
    if built.keys() >= {"strategy", "method", "codec"}:
        problems += pair_problems(built["strategy"], built["method"], built["codec"])
    if built.keys() >= {"strategy", "method"} and isinstance(config.get("round"), Mapping):
        problems += time_problems(built["strategy"], built["method"], config["round"])
    if "strategy" in built and isinstance(config.get("devices"), Mapping):
        problems += device_problems(built["strategy"], config["devices"])
    if built.keys() >= {"method", "fleet"}:
        problems += rank_problems(built["method"], built["fleet"])
    problems += _privacy_problems(config, built)
    if look_up(config, "devices.availability") is True and hasattr(built.get("fleet"), "trace_problems"):
        problems += built["fleet"].trace_problems()
    for path, cap in _CAPS:
        value, most = look_up(config, path), look_up(config, cap)
        if type(value) is int and type(most) is int and value > most:
            problems.append(f"{path} must be at most {cap} ({most}), got {value}")
    if look_up(config, "evaluate.clients_every") and look_up(config, "task.client_test_fraction") == 0:
        problems.append(
            "evaluate.clients_every asks clients to evaluate, but task.client_test_fraction=0 leaves them no examples "
            "(set one of the two)"
        )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _privacy_problems(config: Config, built: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the level of privacy, and with what it goes with."""
    node = config.get("privacy")
    if not isinstance(node, Mapping) or not ({"_target_", "name"} & node.keys()):
        return [f"privacy must name a _target_, got {node!r} (choose one of conf/privacy)"]
    if "_target_" not in node:
        return []
    try:
        level = build(node)
    except ConfigError as error:
        return error.problems
    if not built.keys() >= {"strategy", "method", "codec"}:
        return []
    return list(level.problems(built["strategy"], built["method"], built["codec"], config))


_CAPS = (
    ("cohort_size", "num_clients"),
    ("round.min_replies", "cohort_size"),
    ("round.buffer_size", "cohort_size"),
    ("round.min_replies", "round.buffer_size"),
)
"""Numbers that may not exceed others."""
_WHOLE = {
    "seed": (0, 2**62),
    "rounds": (1, 10**6),
    "num_clients": (1, 10**7),
    "cohort_size": (1, 10**6),
    "round.min_replies": (1, 10**6),
    "client.batch_size": (1, 10**6),
    "client.local_epochs": (1, 10**6),
    "evaluate.clients_every": (0, 10**6),
    "evaluate.batch_size": (1, 10**6),
    "evaluate.shards": (1, 10**4),
    "model.max_length": (4, 10**6),
    "checkpoint.every": (1, 10**6),
    "checkpoint.keep": (1, 10**6),
    "guard.max_bytes": (1, 2**62),
    "guard.max_examples": (1, 2**62),
    "task.samples": (0, 100),
}
_WHOLE_OR_NULL = {
    "client.local_steps": (1, 10**6),
    "evaluate.clients": (1, 10**7),
    "round.buffer_size": (1, 10**6),
    "round.max_staleness": (0, 10**6),
}
_POSITIVE = ("client.lr", "round.timeout_s", "guard.max_norm", "guard.norm_factor")
_POSITIVE_OR_NULL = ("round.deadline_s", "client.max_grad_norm")
_SHARES = {"task.client_test_fraction": False, "model.dropout": True}
"""Numbers in [0, 1), and whether null will do."""
_TEXTS = {
    "name": False,
    "run_dir": False,
    "model.path": False,
    "model.revision": True,
    "task.path": False,
    "task.revision": True,
    "task.split": False,
    "task.text_column": False,
    "task.label_column": False,
    "task.group_column": True,
}
"""Non-empty texts, and whether null will do."""
_NAMES = {"task.text_columns": (1, 2), "task.extra_columns": (0, 1000)}
"""Lists of names, and how many."""
_FLAGS = (
    "report",
    "evaluate.product_error",
    "client.gradient_checkpointing",
    "devices.jitter",
    "devices.memory",
    "devices.availability",
    "devices.fit",
)
_AT_LEAST = {"client.weight_decay": 0, "round.staleness_exponent": 0, "round.over_selection": 1}
_OTHER = ("task.held_out",)
_CHOICES = {
    "task.kind": ("classification", "causal_lm"),
    "task.train_on": ("assistant", "all"),
    "head": ("share", "local", "freeze"),
    "display": ("auto", "plain", "none"),
    "client.optimizer": ("adamw", "sgd"),
    "model.dtype": ("auto", "float32", "bfloat16"),
}

_OF_KIND = {
    "task.text_columns": "classification",
    "task.label_column": "classification",
    "task.text_column": "causal_lm",
    "task.train_on": "causal_lm",
    "task.samples": "causal_lm",
}
"""Keys that only one kind of task has."""


def _applies(config: Config, path: str) -> bool:
    """Whether a config of its kind of task has this key."""
    kind: object = look_up(config, "task.kind")
    return _OF_KIND.get(path, kind) == kind


def _range_problems(config: Config) -> Iterator[str]:
    for path, (low, high) in {**_WHOLE, **_WHOLE_OR_NULL}.items():
        value = look_up(config, path)
        if (value is None and path in _WHOLE_OR_NULL) or not _applies(config, path):
            continue
        if type(value) is not int or not low <= value <= high:
            yield f"{path} must be a whole number in {low}..{high}, got {value!r}"
    for path in (*_POSITIVE, *_POSITIVE_OR_NULL):
        value = look_up(config, path)
        if value is None and path in _POSITIVE_OR_NULL:
            continue
        if not (_is_number(value) and value > 0 and math.isfinite(value)):
            yield f"{path} must be a positive number, got {value!r}"

    for path, may_be_null in _SHARES.items():
        value = look_up(config, path)
        if not (value is None and may_be_null) and not (_is_number(value) and 0 <= value < 1):
            yield f"{path} must be a number in [0, 1){' or null' if may_be_null else ''}, got {value!r}"
    for path, least in _AT_LEAST.items():
        value = look_up(config, path)
        if not (_is_number(value) and value >= least and math.isfinite(value)):
            yield f"{path} must be a number >= {least}, got {value!r}"
    held_out = look_up(config, "task.held_out")
    if not (_is_number(held_out) and held_out > 0) and not (isinstance(held_out, str) and held_out):
        yield f"task.held_out must be a count, a share below 1 or the name of a split, got {held_out!r}"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text_problems(config: Config) -> Iterator[str]:
    for path, may_be_null in _TEXTS.items():
        value = look_up(config, path)
        if not _applies(config, path):
            continue
        if not (value is None and may_be_null) and not (isinstance(value, str) and value.strip()):
            yield f"{path} must be a text{' or null' if may_be_null else ''}, got {value!r}"
    for path, (fewest, most) in _NAMES.items():
        value = look_up(config, path)
        if not _applies(config, path):
            continue
        if (
            not isinstance(value, list)
            or not fewest <= len(value) <= most
            or not all(isinstance(v, str) for v in value)
        ):
            yield f"{path} must be a list of {fewest} to {most} names, got {value!r}"
    for path in _FLAGS:
        if not isinstance(value := look_up(config, path), bool):
            yield f"{path} must be true or false, got {value!r}"


def _unknown(config: Config) -> Iterator[str]:
    """Name keys that nothing reads: with + in front, Hydra takes any."""
    tables = (
        _WHOLE,
        _WHOLE_OR_NULL,
        _POSITIVE,
        _POSITIVE_OR_NULL,
        _SHARES,
        _TEXTS,
        _NAMES,
        _FLAGS,
        _AT_LEAST,
        _OTHER,
        _CHOICES,
    )
    any_kind = look_up(config, "task.kind") not in _CHOICES["task.kind"]
    known = {path for table in tables for path in table if any_kind or _applies(config, path)}
    for section in sorted({path.split(".")[0] for path in known if "." in path}):
        values = config.get(section)
        if not isinstance(values, Mapping):
            continue
        there = sorted(path.split(".")[1] for path in known if path.startswith(f"{section}."))
        for key in values:
            if key not in there:
                yield f"{section}.{key} is unknown: {section} has {', '.join(there)}"


def _choice_problems(config: Config) -> Iterator[str]:
    for path, choices in _CHOICES.items():
        if _applies(config, path) and (value := look_up(config, path)) not in choices:
            yield f"{path} must be one of {', '.join(choices)}, got {value!r}"
    tracking = config.get("tracking")
    if not isinstance(tracking, list) or any(one not in ("tensorboard", "wandb") for one in tracking):
        yield f"tracking must be a list of tensorboard, wandb, got {tracking!r}"
