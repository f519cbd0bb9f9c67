"""A device's side of a run: a node that keeps the connection, and this process, which answers by forking."""

from __future__ import annotations

import json
import logging
import math
import select
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn

from fedpeft.core.errors import EngineError, printable
from fedpeft.engines.deploy.executor import ForkingExecutor
from fedpeft.engines.deploy.node import Node, NodeSettings
from fedpeft.engines.deploy.reach import clock_found
from fedpeft.engines.deploy.telling import Event
from fedpeft.engines.flower_private_node import UNAUTHORIZED, UNKNOWN_KEY
from fedpeft.server.files import write_atomic

POLL_S = 0.1
"""Seconds between two looks for a task at the node, which is on this machine."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _STEADY_S = 1.0, 60.0, 120.0
"""Seconds before a dead node is started again: doubled each time, and forgotten after it ran for long."""
_REGISTERED_S, _RETURN_S = 10.0, 600.0
"""Seconds for which a refused device tries again: a server that just started may still be registering its devices, and
one that took this device before may have started anew."""
_QUIET_S = 30.0
"""Seconds after which a device says that it waits for a server that is there: to be let in takes two or three."""
log = logging.getLogger(__name__)


class _Gone(Exception):
    """The node has ended."""


class _Refused(Exception):
    """The server does not take this device."""


class Client:
    """One device in one federation, until it is ended from outside or refused by the server.

    Args:
        settings: of the node.
        last_id_path: file that keeps what the server calls this device.
        say: told a line for each thing that a person cares about.
        make_executor: returns the executor; given what it is to call between two tasks, and with what happens.
        prepare: imports what every message needs; called once, when the server has taken this device.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        last_id_path: Path,
        say: Callable[[str], None],
        make_executor: Callable[[Callable[[], None], Callable[[Event], None]], ForkingExecutor],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._say, self._prepare = settings, say, prepare
        self._executor = make_executor(self._between, lambda event: self._say_all(told(event)))
        self._last_id_path = last_id_path
        self._node: Node | None = None
        self._taken_s: float | None = None
        self._refused_since_s: float | None = None
        self._connected = self._prepared = False
        self._there_s = math.inf

    def run(self) -> NoReturn:
        """Serve for ever: what ends it is an exception.

        Raises:
            EngineError: the server refuses this device.
        """
        wait_s = _FIRST_WAIT_S
        try:
            while True:
                began, self._connected = time.monotonic(), False
                self._node = Node(replace(self._settings, last_id=self._last_id()))
                try:
                    self._serve(self._node)
                except _Gone:
                    self._say(f"the node ended, its log is {self._settings.log}")
                except _Refused as refusal:
                    self._bear(str(refusal))
                # The node holds what its tasks belong to: with it they are gone.
                self.end()
                if time.monotonic() - began > _STEADY_S:
                    wait_s = _FIRST_WAIT_S
                self._say(f"trying again in {wait_s:g} s")
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        finally:
            self.end()

    def end(self) -> None:
        """End the child and the node, if there are any."""
        self._executor.end()
        if self._node is not None:
            self._node.stop()

    def _bear(self, reason: str) -> None:
        """Say why the server refuses this device; bear it for a while where that may pass.

        Raises:
            EngineError: it has lasted too long.
        """
        now = time.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now
        patience_s = _REGISTERED_S if self._taken_s is None else _RETURN_S
        if now - self._refused_since_s >= patience_s:
            raise EngineError(reason)
        self._say(reason)

    def _last_id(self) -> int | None:
        """Return what this server called this device, None if it never did."""
        try:
            known = json.loads(self._last_id_path.read_text())
            return int(known["node_id"]) if known["server"] == self._settings.server else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note_id(self, node_id: int) -> None:
        known = json.dumps({"server": self._settings.server, "node_id": node_id})
        try:
            write_atomic(self._last_id_path, known.encode())
        except OSError as error:
            log.warning("%s cannot be written, so a crash will be noticed late: %s", self._last_id_path, error)

    def _serve(self, node: Node) -> NoReturn:
        import httpx

        from fedpeft.engines.flower_private_device import run_superexec

        self._there_s, quiet = time.monotonic(), True
        while not self._connected:
            select.select([node.hearer.fd], [], [], 0.5)
            self._between()
            if quiet and time.monotonic() - self._there_s > _QUIET_S:
                quiet = False
                self._say("not let in yet: a device with this key may be there already; waiting until it leaves")
        if not self._prepared:
            self._prepare()
            self._prepared = True
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
            if event["kind"] == "connected":
                self._connected, self._taken_s, self._refused_since_s = True, time.monotonic(), None
                self._note_id(event["node_id"])
            if event["kind"] == "refused":
                raise _Refused(_refusal(event, self._settings.server))
            if event["kind"] in ("lost", "back"):
                self._there_s = time.monotonic() if event["kind"] == "back" else math.inf
            if event["kind"] == "lost" and self._taken_s is None:
                self._say(f"no server at {self._settings.server} yet, trying until there is one")
                continue
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
            return "connected"
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
    unknown = f"{server} does not know this device's key (register it there: fedpeft server add-device)"
    if event["reason"] == UNKNOWN_KEY:
        return unknown
    if event["reason"] != str(UNAUTHORIZED):
        reason = " ".join(
            str(event["reason"]).removeprefix("Failed to initialize the connection to the SuperLink.").split()
        )
        return f"cannot join {server}: {printable(reason)} (fedpeft client --check says what to do)"
    try:
        server_time: datetime = parsedate_to_datetime(event["date"])
    except ValueError:
        return unknown
    _, state, text = clock_found(event["at"] - server_time.timestamp())
    if state == "problem":
        return f"{server} refuses this device: its clock is {text}"
    return unknown
