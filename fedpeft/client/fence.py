"""What the operator of a device allows a server to have done on it."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeGuard

from fedpeft import config as cfg
from fedpeft.core.errors import OUT_OF_MEMORY, ConfigError, EngineError, printable
from fedpeft.device_profiles.memory import PROCESS_DATA_MB

DEFAULT_ALLOW = (
    "fedpeft.methods.",
    "fedpeft.codecs.",
    "fedpeft.device_profiles.",
    "fedpeft.privacy.",
)
"""Class paths that a config may name where the operator says nothing."""
BUILT = ("method", "codec", "privacy", "fleet")
"""Entries of a config that a device builds classes of. The others concern the server alone: so does who holds what."""
EXAMPLE_LEVEL, LOCAL = "fedpeft.privacy.example_level.ExampleLevel", "fedpeft.privacy.local.Local"
"""The levels that a client carries out itself. One that the server carries out asks the client to trust it."""
_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """An operator's conditions. A server cannot raise them, because they never come from a config.

    Args:
        allow: prefixes of class paths that a config may name.
        max_steps: optimiser steps a round; None for no limit.
        max_seconds: seconds of a message's work; None for no limit.
        max_memory_mb: MB of private memory of the process that works, its libraries included; None for no limit.
        max_bytes: bytes of arrays taken in one message; None for the config's.
        require_epsilon: a config must protect this client's examples, or the client, by at most this epsilon without
            trust in the server; None demands nothing.
        max_delta: the delta up to which that counts.

    Raises:
        ConfigError: a condition is out of range; all problems together.

    Example:
        >>> Fence(max_steps=8).check({"client": {"local_steps": 16, "local_epochs": 1, "batch_size": 4}})
        Traceback (most recent call last):
        fedpeft.core.errors.ConfigError: client.local_steps is 16, this device allows 8 (--max-steps)
    """

    allow: tuple[str, ...] = DEFAULT_ALLOW
    max_steps: int | None = None
    max_seconds: float | None = None
    max_memory_mb: float | None = None
    max_bytes: int | None = None
    require_epsilon: float | None = None
    max_delta: float = 1e-5

    def __post_init__(self) -> None:
        limits = ("max_steps", "max_seconds", "max_memory_mb", "max_bytes", "require_epsilon")
        problems = [
            f"--{name.replace('_', '-')} must be a positive number, got {value:g}"
            for name in limits
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf
        ]
        if not all(self.allow):
            problems.append("--allow must not be empty: it would allow every class there is (say a prefix)")
        if not 0 < self.max_delta < 1:
            problems.append(f"max_delta must be in (0, 1), got {self.max_delta:g}")
        if problems:
            raise ConfigError(problems)

    def check(self, config: Mapping[str, Any], *, num_examples: int | None = None) -> None:
        """Refuse a config that breaks a condition, before anything of it is built.

        Args:
            config: as the server sent it.
            num_examples: examples that this client trains on, for configs that count epochs; None where not known yet:
                then such a config passes, and is to be checked again when they are.

        Raises:
            ConfigError: a line for each problem.
        """
        problems = [line for name in BUILT for line in cfg.foreign(config.get(name, {}), self.allow)]
        problems += self._step_problems(config.get("client"), num_examples)
        problems += self._privacy_problems(config)
        if problems:
            raise ConfigError([printable(line) for line in problems])

    def bounded(self, max_bytes: int) -> int:
        """Return how many bytes of arrays are taken in one message: what the config says, or less.

        Args:
            max_bytes: the config's ``guard.max_bytes``.
        """
        return max_bytes if self.max_bytes is None else min(max_bytes, self.max_bytes)

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Bound the seconds and the memory of what runs inside; for a process that answers one message.

        Seconds are kept by an alarm, which a main thread hears between two of Python's steps. Memory is the kernel's
        limit on private data (``RLIMIT_DATA``), which counts what a fork inherited; Linux keeps it, other systems
        have no such limit.

        Raises:
            EngineError: it took longer, or memory ran out under the limit.
        """
        with self._bounded_memory(), self._bounded_seconds():
            yield

    def _step_problems(self, client: Any, num_examples: int | None) -> list[str]:
        if self.max_steps is None:
            return []
        try:
            steps, epochs, batch = (client[name] for name in ("local_steps", "local_epochs", "batch_size"))
            # Zero counts as none where training counts steps.
            if steps:
                found, said = int(steps), f"client.local_steps is {int(steps)}"
            elif num_examples is None:
                return []
            else:
                found = int(epochs) * -(-num_examples // int(batch))
                said = f"client.local_epochs={int(epochs)} takes {found} steps here"
        except (TypeError, KeyError, ValueError, ZeroDivisionError):
            return ["the config does not say how many steps client.local_steps a round has"]
        return [] if found <= self.max_steps else [f"{said}, this device allows {self.max_steps} (--max-steps)"]

    def _privacy_problems(self, config: Mapping[str, Any]) -> list[str]:
        if self.require_epsilon is None:
            return []
        demand = f"this device demands epsilon <= {self.require_epsilon:g} (--require-epsilon)"
        level = config.get("privacy")
        target = level.get("_target_") if isinstance(level, Mapping) else None
        if not isinstance(level, Mapping) or target not in (EXAMPLE_LEVEL, LOCAL):
            return [
                f"{demand} of a level that needs no trust in the server: privacy=example_level or local, got "
                f"{_level_name(target)}"
            ]
        problems = []
        epsilon, delta = level.get("epsilon"), level.get("delta", 1e-5 if target == EXAMPLE_LEVEL else None)
        if not (_is_number(epsilon) and 0 < epsilon <= self.require_epsilon):
            problems.append(f"{demand}, privacy.epsilon is {epsilon}")
        if not (_is_number(delta) and 0 < delta <= self.max_delta):
            problems.append(f"{demand} at delta <= {self.max_delta:g}, privacy.delta is {delta} (set it)")
        if level.get("tell_evaluations"):
            problems.append(
                f"{demand}, privacy.tell_evaluations=true would leave the examples for evaluation out of it"
            )
        return problems

    @contextmanager
    def _bounded_memory(self) -> Iterator[None]:
        import resource

        if self.max_memory_mb is None:
            yield
            return
        before = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(self.max_memory_mb * _MB)
        most = wanted if before[1] == resource.RLIM_INFINITY else min(wanted, before[1])
        resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            raise EngineError(
                f"{OUT_OF_MEMORY}: this device allows {self.max_memory_mb:g} MB, of which its libraries take about "
                f"{PROCESS_DATA_MB} (--max-memory-mb; a smaller batch, rank or model needs less)"
            ) from error
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)

    @contextmanager
    def _bounded_seconds(self) -> Iterator[None]:
        if self.max_seconds is None:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            raise EngineError("seconds can be bounded in the main thread only: that is where alarms are heard")

        def ring(number: int, frame: FrameType | None) -> None:
            raise EngineError(f"it took longer than the {self.max_seconds:g} s that this device allows (--max-seconds)")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, self.max_seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def caps_memory() -> bool:
    """Return whether this system keeps ``Fence.max_memory_mb``."""
    return sys.platform.startswith("linux")


def _level_name(target: object) -> str:
    return "none" if target is None else str(target).rpartition(".")[2]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
