"""Building the classes that a config names, and only those that may be built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedpeft.config.messages import one_line
from fedpeft.core.errors import ConfigError, FedPeftError


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

    if allow is not None and (problems := foreign(node, allow)):
        raise ConfigError(problems)
    try:
        return instantiate(dict(node), _convert_="all", **extra)
    except Exception as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, FedPeftError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, FedPeftError):
            raise cause from error
        raise ConfigError(f"{node.get('_target_')}: {one_line(cause or error)}") from error


def build_if_named(node: Mapping[str, Any], allow: Sequence[str] | None = None) -> Any:
    """Instantiate a node's ``_target_``, None for a node without one; see `build`."""
    return build(node, allow) if "_target_" in node else None


def foreign(node: Any, allow: Sequence[str]) -> list[str]:
    """Return a line for each target that is no class under an allowed prefix, and for each interpolation.

    An interpolation could read this machine, or make a target.

    A prefix alone is not enough: ``fedpeft.core.paths.os.getpid`` begins well and ends elsewhere.

    Args:
        node: plain data.
        allow: prefixes of class paths.
    """
    return [
        f"{text!r} is an interpolation: a config from elsewhere must be resolved before it is sent"
        for text in _strings(node)
        if "${" in text
    ] + [
        f"_target_ {target} is not allowed here: allowed are classes under {', '.join(allow)} "
        "(the operator of this machine may allow more)"
        for target in _targets(node)
        # Nothing outside is imported, not even to look where its class is at home.
        if not (target.startswith(tuple(allow)) and _home(target).startswith(tuple(allow)))
    ]


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
