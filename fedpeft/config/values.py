"""A composed config is plain data: read, hashed, compared, sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

LAUNCH_KEYS = (
    "resume", "engine", "deployed", "rounds", "display", "report", "tracking", "run_dir", "run_id",
    "checkpoint",
)  # fmt: skip
"""What may differ when a run is resumed: where and how far, never what is computed."""


def to_json(config: Config) -> str:
    """Return the config as canonical JSON: what travels to clients."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def config_hash(config: Config) -> str:
    """Return the sha256 of what is computed: the config without launch settings and paths.

    Two machines may keep the same model in different folders; that it is the same is for its own hash to say.
    """
    kept = {key: value for key, value in config.items() if key not in LAUNCH_KEYS}
    for name in ("model", "task"):
        if isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key != "path"}
    return hashlib.sha256(to_json(kept).encode()).hexdigest()


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where a step is missing."""
    value: Any = config
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def is_deployed(config: Mapping[str, Any]) -> bool:
    """Return whether a run's clients are real devices (``fedpeft server``), not simulated ones."""
    return str(look_up(config, "engine._target_") or "").endswith(".Deploy")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return one line for each value that differs between two configs.

    Where another class stands in a place, that alone is said: its arguments differ of themselves.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if (was := old.get("_target_")) != (now := new.get("_target_")):
            return [f"{path}: was {was}, now {now}"]
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: was {old!r}, now {new!r}"]
