"""Checks of a whole config, before anything heavy begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from fedpeft.config.build import build
from fedpeft.config.values import Config, look_up
from fedpeft.core.errors import ConfigError


def check(config: Config) -> None:
    """Refuse a config that cannot run, with every problem found.

    Raises:
        ConfigError: one line for each problem.
    """
    problems = [*_range_problems(config), *_choice_problems(config)]
    for name in ("strategy", "method", "partition", "fleet", "selection", "engine"):
        node = config.get(name)
        if not isinstance(node, Mapping) or "_target_" not in node:
            problems.append(f"{name} must name a _target_, got {node!r} (choose one of conf/{name})")
            continue
        try:
            build(node)
        except ConfigError as error:
            problems.extend(error.problems)
    for path, cap in (("cohort_size", "num_clients"), ("round.min_replies", "cohort_size")):
        value, most = look_up(config, path), look_up(config, cap)
        if type(value) is int and type(most) is int and value > most:
            problems.append(f"{path} must be at most {cap} ({most}), got {value}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


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
}
_WHOLE_OR_NULL = {"client.local_steps": (1, 10**6), "evaluate.clients": (1, 10**7)}
_POSITIVE = ("client.lr", "round.timeout_s", "guard.max_norm", "guard.norm_factor")
_POSITIVE_OR_NULL = ("round.deadline_s", "client.max_grad_norm")
_CHOICES = {
    "head": ("share", "local", "freeze"),
    "display": ("auto", "plain", "none"),
    "client.optimizer": ("adamw", "sgd"),
    "model.dtype": ("auto", "float32", "bfloat16"),
}


def _range_problems(config: Config) -> Iterator[str]:
    for path, (low, high) in {**_WHOLE, **_WHOLE_OR_NULL}.items():
        value = look_up(config, path)
        if value is None and path in _WHOLE_OR_NULL:
            continue
        if type(value) is not int or not low <= value <= high:
            yield f"{path} must be a whole number in {low}..{high}, got {value!r}"
    for path in (*_POSITIVE, *_POSITIVE_OR_NULL):
        value = look_up(config, path)
        if value is None and path in _POSITIVE_OR_NULL:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 and math.isfinite(value)):
            yield f"{path} must be a positive number, got {value!r}"


def _choice_problems(config: Config) -> Iterator[str]:
    for path, choices in _CHOICES.items():
        if (value := look_up(config, path)) not in choices:
            yield f"{path} must be one of {', '.join(choices)}, got {value!r}"
    tracking = config.get("tracking")
    if not isinstance(tracking, list) or any(one not in ("tensorboard", "wandb") for one in tracking):
        yield f"tracking must be a list of tensorboard, wandb, got {tracking!r}"
