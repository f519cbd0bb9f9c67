"""The configuration: composed once by Hydra, checked as a whole, then plain data."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedpeft.core.errors import ConfigError, FedPeftError
from fedpeft.core.paths import conf_dir

Config = dict[str, Any]

LAUNCH_KEYS = ("resume", "engine", "rounds", "display", "report", "tracking", "run_dir", "run_id", "checkpoint")
"""What may differ when a run is resumed: where and how far, never what is computed."""


def compose(overrides: Sequence[str]) -> Config:
    """Compose ``conf/config.yaml`` with command-line overrides and resolve it to plain data.

    Raises:
        ConfigError: every override that Hydra refuses and every value that is wrong in the rest, one line each.
    """
    try:
        return _compose(overrides)
    except Exception as error:
        refused = {override: text for override in overrides if (text := _refusal(override))}
        problems = [f"{override}: {text}" for override, text in refused.items()]
        if refused:
            # Hydra stops at the first override it refuses; the others may be wrong as well.
            problems += _problems_of([one for one in overrides if one not in refused])
        raise ConfigError(problems or _lines(error)) from error


def _compose(overrides: Sequence[str]) -> Config:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        cfg = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        return plain(cfg)


def _refusal(override: str) -> str | None:
    """Return why Hydra refuses an override that stands alone, None if it takes it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        try:
            hydra_compose("config", overrides=[override])
        except Exception as error:
            key = override.split("=", 1)[0].lstrip("+~")
            close = difflib.get_close_matches(key, _known_keys(hydra_compose("config")), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close and "Could not override" in str(error) else ""
            return _one_line(error) + hint
    return None


def _known_keys(cfg: Any, path: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys = [f"{path}{key}" for key in cfg]
    return keys + [
        k for key in cfg if isinstance(cfg._get_node(key), DictConfig) for k in _known_keys(cfg[key], f"{path}{key}.")
    ]


def _problems_of(overrides: Sequence[str]) -> list[str]:
    try:
        check(_compose(overrides))
    except Exception as error:
        return _lines(error)
    return []


def _lines(error: Exception) -> list[str]:
    return error.problems if isinstance(error, ConfigError) else [_one_line(error)]


def _one_line(error: BaseException) -> str:
    """Return the useful part of a library's message on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    skip = (
        "full_key",
        "object_type",
        "To append to your config",
        "Set the environment variable",
        "Config search path",
        "provider=",
        "hydra:",
        "^",
    )
    return " ".join(line for line in lines if not line.startswith(skip)) or type(error).__name__


def plain(cfg: Any) -> Config:
    """Resolve a DictConfig to plain dicts, lists and scalars.

    Raises:
        ConfigError: values that are still missing (``???``), all of them, or an interpolation that leads nowhere.
    """
    from omegaconf import OmegaConf

    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError([f"{key} has no value: give {key}=..." for key in missing])
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_one_line(error)) from error


def to_json(config: Config) -> str:
    """Return the config as canonical JSON: what travels to clients."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def config_hash(config: Config) -> str:
    """Return the sha256 of what is computed: the config without launch settings and paths."""
    kept = {key: value for key, value in config.items() if key not in LAUNCH_KEYS}
    return hashlib.sha256(to_json(kept).encode()).hexdigest()


def build(node: Mapping[str, Any], allow: Sequence[str] | None = None, **extra: Any) -> Any:
    """Instantiate a node's ``_target_``.

    Args:
        node: plain data with a ``_target_``.
        allow: prefixes of class paths that may be built, None for any. A client builds only classes that are defined
            under what its operator allows: a config from the network must not be a way to run code.
        extra: further keyword arguments.

    Raises:
        ConfigError: the target is forbidden, missing, or refuses its arguments.
    """
    from hydra.utils import instantiate

    if allow is not None:
        _refuse_foreign(node, allow)
    try:
        return instantiate(dict(node), _convert_="all", **extra)
    except Exception as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, FedPeftError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, FedPeftError):
            raise cause from error
        raise ConfigError(f"{node.get('_target_')}: {_one_line(cause or error)}") from error


def _refuse_foreign(node: Any, allow: Sequence[str]) -> None:
    """Refuse targets that are not classes under an allowed prefix, and interpolations.

    An interpolation could read this machine, or make a target.

    A prefix alone is not enough: ``fedpeft.core.paths.os.getpid`` begins well and ends elsewhere.
    """
    for text in _strings(node):
        if "${" in text:
            raise ConfigError(
                f"{text!r} is an interpolation: a config from elsewhere must be resolved before it is sent"
            )
    for target in _targets(node):
        if not (target.startswith(tuple(allow)) and _home(target).startswith(tuple(allow))):
            raise ConfigError(
                f"_target_ {target} is not allowed here: allowed are classes under {', '.join(allow)} "
                "(the operator of this machine may allow more)"
            )


def _home(target: str) -> str:
    """Return where the class of this path is defined, "" for anything that is no class."""
    from importlib import import_module

    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return ""
    return f"{found.__module__}.{found.__qualname__}" if isinstance(found, type) else ""


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _targets(value)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield node


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


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where a step is missing."""
    value: Any = config
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return one line for each value that differs between two configs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: was {old!r}, now {new!r}"]
