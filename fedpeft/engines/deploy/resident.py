"""An executor whose child stays: a graphics card's memory and its driver's state do not pass through a fork.

The child is forked before anything has touched the card, answers one message after another, and keeps model and data
there. Whatever it cannot answer ends it, so that the next message begins with a fresh one; what kills it is told to the
server like a fork's death, and kills nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

from fedpeft.engines.deploy.child import answer_task, forked
from fedpeft.engines.deploy.executor import Child, ForkingExecutor
from fedpeft.engines.deploy.telling import Hearer
from fedpeft.engines.flower_private_device import accepted

OVER = "over"
"""What the child tells when it is done with a message."""


class ResidentExecutor(ForkingExecutor):
    """Hands each message to one child that stays, and starts another when it is gone; see ``ForkingExecutor``.

    ``warm`` is not called: what the child has built for a run it keeps.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._resident: _Resident | None = None

    def launch(self, spec: Any) -> Any:
        """Hand a task to the child and return at once."""
        if self._resident is None or not self._resident.takes(spec):
            self._dismiss()
            self._resident = _Resident(self._make_app, self._limits)
            self._resident.takes(spec)
        self._began(self._resident.pid, spec, self._resident.hearer)
        return accepted()

    def end(self) -> None:
        """End the child, whatever it is doing, and the one that waits for work."""
        if self._child is not None and self._is_resident(self._child):
            self._child = None
        super().end()
        self._dismiss()

    def _ended(self, child: Child) -> int | None:
        if child.over is None or not self._is_resident(child):
            status = super()._ended(child)
            if status is not None and self._is_resident(child):
                self._resident = None
            return status
        if child.over:
            self._dismiss()
        # As `os.waitpid` has it.
        return child.over << 8

    def _close(self, child: Child) -> None:
        """Leave the pipe of a child that stays open."""
        if not self._is_resident(child):
            super()._close(child)

    def _is_resident(self, child: Child) -> bool:
        return self._resident is not None and child.pid == self._resident.pid

    def _warm_up(self, config: str | None) -> None:
        """Do nothing: the child has it."""

    def _dismiss(self) -> None:
        resident, self._resident = self._resident, None
        if resident is not None:
            resident.end()


class _Resident:
    """The child, and the pipes to and from it.

    Args:
        make_app: returns the app; called in the child for each message.
        limits: entered by the child around the app.
    """

    def __init__(self, make_app: Callable[[], Any], limits: Callable[[], AbstractContextManager[None]]) -> None:
        self.hearer = Hearer()
        read_fd, write_fd = os.pipe()

        def work(tell: Callable[..., None]) -> int:
            os.close(write_fd)
            return answer_all(read_fd, tell, make_app=make_app, limits=limits)

        self.pid = forked(self.hearer, work)
        self.hearer.told()
        os.close(read_fd)
        # Closed with this object.
        self._tasks = os.fdopen(write_fd, "wb", buffering=0)

    def takes(self, spec: Any) -> bool:
        """Hand it a task; return False where it is gone."""
        line = json.dumps({"runtime_api_address": spec.runtime_api_address, "token": spec.token}).encode() + b"\n"
        try:
            # A pipe takes so few bytes at once.
            self._tasks.write(line)
        except BrokenPipeError:
            return False
        return True

    def end(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._tasks.close()
        self.hearer.close()


def answer_all(
    read_fd: int,
    tell: Callable[..., None],
    *,
    make_app: Callable[[], Any],
    limits: Callable[[], AbstractContextManager[None]],
) -> int:
    """Answer tasks, a line of JSON each, until there are no more or one has gone wrong; return the exit code.

    Args:
        read_fd: where they come from.
        tell: tells the parent.
        make_app: returns the app.
        limits: entered around it.
    """
    with os.fdopen(read_fd) as tasks:
        for line in tasks:
            spec = SimpleNamespace(**json.loads(line))
            code = answer_task(spec, tell, make_app=make_app, limits=limits, stays=True)
            free_memory()
            tell(OVER, code=code)
            if code:
                return code
    return 0


def free_memory() -> None:
    """Give back what a message took, on the card too: the next one may need it in other pieces."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
