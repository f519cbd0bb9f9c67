"""A device's side of a run: a node that keeps the connection, and this process, which answers by forking."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime

from fedpeft.core.errors import EngineError, printable
from fedpeft.engines.deploy.executor import ForkingExecutor
from fedpeft.engines.deploy.node import Node, NodeSettings
from fedpeft.engines.deploy.reach import clock_found
from fedpeft.engines.deploy.telling import Event

POLL_S = 0.1
"""Seconds between two looks for a task at the node, which is on this machine."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _STEADY_S = 1.0, 60.0, 120.0
"""Seconds before a dead node is started again: doubled each time, and forgotten after it ran for long."""
log = logging.getLogger(__name__)


class _Gone(Exception):
    """The node has ended."""


class Client:
    """One device in one federation, until it is ended from outside or refused by the server.

    Args:
        settings: of the node.
        say: told a line for each thing that a person cares about.
        make_executor: returns the executor; given what it is to call between two tasks, and with what happens.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        say: Callable[[str], None],
        make_executor: Callable[[Callable[[], None], Callable[[Event], None]], ForkingExecutor],
    ) -> None:
        self._settings, self._say = settings, say
        self._executor = make_executor(self._between, lambda event: self._say_all(told(event)))
        self._node: Node | None = None
        self._connected = False

    def run(self) -> None:
        """Serve for ever: what ends it is an exception.

        Raises:
            EngineError: the server refuses this device.
        """
        wait_s = _FIRST_WAIT_S
        try:
            while True:
                began, self._connected = time.monotonic(), False
                self._node = Node(self._settings)
                with suppress(_Gone):
                    self._serve(self._node)
                # The node holds what its tasks belong to: with it they are gone.
                self._executor.end()
                self._node.stop()
                if time.monotonic() - began > _STEADY_S:
                    wait_s = _FIRST_WAIT_S
                self._say(f"the node ended ({self._node.ended()}), see {self._settings.log}; again in {wait_s:g} s")
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        finally:
            self.end()

    def end(self) -> None:
        """End the child and the node, if there are any."""
        self._executor.end()
        if self._node is not None:
            self._node.stop()

    def _serve(self, node: Node) -> None:
        import httpx

        from fedpeft.engines.flower_private import run_superexec

        while not self._connected:
            select.select([node.hearer.fd], [], [], 0.5)
            self._between()
        secret = self._settings.secret.read_bytes()
        while True:
            try:
                run_superexec(self._executor, address=node.address, secret=secret, poll_s=POLL_S)
            except httpx.HTTPError as error:
                log.warning("the node did not answer: %s", error)
                self._between()
                time.sleep(POLL_S)

    def _between(self) -> None:
        """Pass on what the node tells, and leave the loop when it has ended."""
        assert self._node is not None, "there is a node before anything runs"
        ended = self._node.ended()
        for event in self._node.events():
            self._connected = self._connected or event["kind"] == "connected"
            if event["kind"] == "refused":
                raise EngineError(_refusal(event, self._settings.server))
            self._say_all(told(event))
        if ended is not None:
            raise _Gone

    def _say_all(self, line: str | None) -> None:
        if line is not None:
            self._say(line)


def told(event: Event) -> str | None:
    """Return an event as a line for people, None for what they need not know."""
    reason = printable(" ".join(str(event.get("reason", "")).split()))
    kind, round_number = event["kind"], event.get("round")
    where = f"round {round_number}" if round_number is not None else "the run"
    doing = {"train": "training", "evaluate": "evaluating"}.get(str(event.get("type", "")).partition(".")[0])
    match kind:
        case "connected":
            return "connected, waiting for a run"
        case "lost":
            return f"connection lost, trying again until it is back ({reason})"
        case "back":
            return "connected again"
        case "began":
            return f"{where}: {doing}" if doing else "a run asks who this is"
        case "done":
            return f"{where}: done in {event['seconds']:.1f} s"
        case "refused":
            return f"{where}: refused because {reason}"
        case "died":
            return f"failed: {reason}; the server has been told"
        case "warm":
            return f"model and data are ready ({event['seconds']:.1f} s), later rounds begin at once"
    return None


def _refusal(event: Event, server: str) -> str:
    """Return why a server does not take this device, and what to do."""
    if event["reason"] != "401":
        reason = " ".join(
            str(event["reason"]).removeprefix("Failed to initialize the connection to the SuperLink.").split()
        )
        return f"cannot join {server}: {printable(reason)} (fedpeft client --check says what to do)"
    try:
        server_time: datetime = parsedate_to_datetime(event["date"])
    except ValueError:
        return f"{server} does not take this device's key (register it there: fedpeft server add-device)"
    _, state, text = clock_found(event["at"] - server_time.timestamp())
    if state == "problem":
        return f"{server} refuses this device: its clock is {text}"
    return f"{server} does not know this device's key (register it there: fedpeft server add-device)"
