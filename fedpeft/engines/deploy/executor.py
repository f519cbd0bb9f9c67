"""A Flower executor that forks: each message is answered by a child that has torch and the base model already.

Flower starts a Python for each message and spends 10 to 20 seconds of a small device on imports. Here a process that
has imported everything forks a child for each message. The child pulls it, answers it by Flower's own
``run_clientapp`` with our ClientApp, and ends: what it took of memory is given back, and what kills it kills nothing
else. Code that a server sends along (the FAB) is never unpacked or run.

What a run needs (base model, data) is known only with its first message. That one's child builds it alone and hands the
run's config up; when it has ended well the parent builds the same, and later forks inherit it.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import OUT_OF_MEMORY
from fedpeft.engines.deploy.child import answer_for, answer_task, forked
from fedpeft.engines.deploy.parenthood import death
from fedpeft.engines.deploy.telling import Event, Hearer
from fedpeft.engines.flower_private_device import accepted, client_tasks

if TYPE_CHECKING:
    from fedpeft.engines.flower_private_device import App

LOST = 8
"""Flower's code for a ClientApp that stopped responding."""
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Child:
    """A process that answers a task.

    Attributes:
        pid: its process id.
        spec: Flower's description of the task.
        hearer: where it tells how far it is.
        began_s: when it was forked, by the monotonic clock.
        message: the task's message without its content, once it has it.
        config: the run's config.
        answered: the reply is with the SuperNode.
        over: what came of the task, 0 if it went well, where the child says so and stays; None before.
        answers_for: it only says that another child died, and how.
    """

    pid: int
    spec: Any
    hearer: Hearer
    began_s: float
    message: bytes | None = None
    config: str | None = None
    answered: bool = False
    over: int | None = None
    killed_for: str | None = None
    answers_for: str | None = None
    happenings: list[Event] = field(default_factory=list)


class ForkingExecutor:
    """Starts a fork of this process for each message, one at a time.

    This process must stay single-threaded, and must not have computed with more than one torch thread.

    Args:
        make_app: returns the ClientApp; called in each child.
        warm: builds what a run needs, from the run's config, in this process; called once for each config that a child
            has answered a message of. What it raises is logged: children then build for themselves.
        tell: called with what happens: ``began`` (type, round), ``done`` (also seconds), ``refused`` (also reason),
            ``died`` (reason), ``warm`` (seconds).
        limits: entered by a child around the ClientApp.
        patience_s: seconds after which a child is killed that does not heed its own limits; None for no such limit.
        between: called about every tenth of a second, whatever else happens. What it raises ends the loop.
    """

    def __init__(
        self,
        *,
        make_app: Callable[[], App],
        warm: Callable[[str], None],
        tell: Callable[[Event], None] = lambda event: None,
        limits: Callable[[], AbstractContextManager[None]] = nullcontext,
        patience_s: float | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._make_app, self._warm, self._tell = make_app, warm, tell
        self._limits, self._patience_s, self._between = limits, patience_s, between
        self._child: Child | None = None
        self._warmed: str | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that live."""
        return [] if self._child is None else [self._child.pid]

    def get_eligible_capacity(self, supported_task_types: set[Any], **_: Any) -> tuple[set[Any], set[str]]:
        """Return the kinds of tasks that are wanted now: a ClientApp's, and none while one is being answered."""
        return (set() if self._child else client_tasks() & supported_task_types), set()

    def wait_for_capacity(self, task_type: Any = None, **_: Any) -> None:
        """Do nothing: `get_eligible_capacity` said so already."""

    def launch(self, spec: Any) -> Any:
        """Fork a child for a task and return at once."""
        self._fork(spec, lambda tell: answer_task(spec, tell, make_app=self._make_app, limits=self._limits))
        return accepted()

    def reconcile(self) -> None:
        """Hear the child, take note of its end, and warm up between two."""
        self._between()
        child = self._child
        if child is None:
            return
        self._hear(child)
        status = self._ended(child)
        if status is not None:
            self._end(child, status)
        elif self._patience_s is not None and time.monotonic() - child.began_s > self._patience_s:
            child.killed_for = (
                f"it took longer than {self._patience_s:g} seconds, twice --max-seconds, so this device ended it"
            )
            os.kill(child.pid, signal.SIGKILL)

    def close(self) -> None:
        """Do nothing: a loop that lost the SuperNode for a moment is begun again. `end` is the end."""

    def end(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        if child is not None:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            self._close(child)

    def _fork(self, spec: Any, work: Callable[[Callable[..., None]], int], **more: Any) -> None:
        hearer = Hearer()
        pid = forked(hearer, work)
        hearer.told()
        self._began(pid, spec, hearer, **more)

    def _began(self, pid: int, spec: Any, hearer: Hearer, **more: Any) -> None:
        self._child = Child(pid=pid, spec=spec, hearer=hearer, began_s=time.monotonic(), **more)

    def _ended(self, child: Child) -> int | None:
        """Return what became of a child, as `os.waitpid` has it; None while it works."""
        ended, status = os.waitpid(child.pid, os.WNOHANG)
        return status if ended else None

    def _close(self, child: Child) -> None:
        child.hearer.close()

    def _hear(self, child: Child) -> None:
        for event in child.hearer.hear():
            match event["kind"]:
                case "pulled":
                    child.message = base64.b64decode(event["message"])
                case "config":
                    child.config = event["text"]
                case "pushed":
                    child.answered = True
                case "over":
                    child.over = event["code"]
                case "began":
                    self._tell(event)
                case _:
                    child.happenings.append(event)

    def _end(self, child: Child, status: int) -> None:
        self._hear(child)
        self._close(child)
        self._child = None
        for event in child.happenings:
            self._tell(event)
        if child.answered:
            if child.answers_for is None and not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) == 0:
                self._warm_up(child.config)
            return
        if child.answers_for is not None:
            log.error("the server could not be told that %s; it learns it from Flower later", child.answers_for)
            return
        reason = child.killed_for or _why(status)
        self._tell({"kind": "died", "reason": reason})
        self._fork(
            child.spec,
            lambda tell: answer_for(child.spec, tell, pulled=child.message, code=LOST, reason=reason),
            answers_for=reason,
        )

    def _warm_up(self, config: str | None) -> None:
        """Build what later forks are to inherit."""
        if config is None or config == self._warmed:
            return
        from fedpeft.engines.memory import freeze_heap

        # Whatever comes of it: a config that cannot be built here would fail in the same way after each message.
        self._warmed = config
        began = time.monotonic()
        try:
            self._warm(config)
        except Exception:
            log.exception("cannot build the run's model and data ahead; each message will do it for itself")
            return
        freeze_heap()
        self._tell({"kind": "warm", "seconds": time.monotonic() - began})


def _why(status: int) -> str:
    name = death(status)
    if name is None:
        return f"the process that answered ended with code {os.WEXITSTATUS(status)} and no answer"
    if name == "SIGKILL":
        return f"the process that answered was killed (SIGKILL), most often by the system because it is {OUT_OF_MEMORY}"
    return f"the process that answered was killed ({name})"
