"""A decorator around Flower's grid that knows whose key a node has."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedpeft.core import wire
from fedpeft.core.errors import WireError
from fedpeft.server.passing_grid import PassingGrid

ERROR_STRANGER = 2
"""Flower's code for a reply that is an error."""
POLL_S = 0.1
"""Seconds between two looks for replies; Flower's own grid looks every three seconds."""


class NamedGrid(PassingGrid):
    """Lets a device say only of itself who it is: its node has a key, and the key is registered for one client.

    Args:
        inner: Flower's grid.
        nodes: the launcher's JSON file, from node ids (as text) to client ids; it may change while the run goes on.
    """

    def __init__(self, inner: Grid, nodes: Path) -> None:
        super().__init__(inner)
        self._nodes = nodes
        self._questions: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online and registered."""
        known = self._clients()
        return [node for node in self.inner.get_node_ids() if node in known]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on, and remember the questions: Flower's replies do not repeat them."""
        batch = list(messages)
        ids = list(self.inner.push_messages(batch))
        hellos = {one: m for one, m in zip(ids, batch, strict=True) if m.metadata.message_type == wire.HELLO_QUERY}
        self._questions |= hellos
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on; a device that claims to be another one's client gets an error for a reply."""
        return [self._checked(reply) for reply in self.inner.pull_messages(list(message_ids))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that come in time, each checked."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        waiting, replies = set(self.push_messages(messages)), []
        while waiting and time.monotonic() < until:
            came = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            replies += came
            if not came:
                time.sleep(POLL_S)
        return replies

    def _checked(self, reply: Message) -> Message:
        question = self._questions.pop(reply.metadata.reply_to_message_id, None)
        if question is None:
            return reply
        node_id = question.metadata.dst_node_id
        if reply.has_error():
            who = f"client {self._clients().get(node_id)}"
            return Message(Error(reply.error.code, f"{who}: {reply.error.reason}"), reply_to=question)
        try:
            claimed = wire.read_hello(reply.content, node_id).client_id
        except WireError:
            return reply
        registered = self._clients().get(node_id)
        if claimed == registered:
            return reply
        reason = f"says it is client {claimed}, but its key is registered for client {registered}"
        return Message(Error(ERROR_STRANGER, reason), reply_to=question)

    def _clients(self) -> dict[int, int]:
        return {int(node): int(client) for node, client in json.loads(self._nodes.read_text()).items()}
