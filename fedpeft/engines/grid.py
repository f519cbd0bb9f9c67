"""A Flower Grid over a pool of forked workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedpeft.core.seeds import derive
from fedpeft.engines.flower_private import Run, set_identity, set_message_id
from fedpeft.engines.pool import Done, ForkPool

SERVER_NODE_ID = 1
ERROR_RAISED, ERROR_LOST = 2, 8
"""Flower's codes for a ClientApp that raised and for one that stopped responding."""


class InProcessGrid(Grid):
    """Carries messages to ClientApps in forked workers of this process.

    Every simulated client is a node with its own ``Context``, whose ``state`` is kept between its messages. Queries are
    answered in this process: they carry no training and a run with thousands of clients begins with thousands of them.

    Args:
        pool: workers made with ``handlers``.
        client_app: the app, for queries.
        num_clients: nodes to offer.
        seed: node ids follow from it.
        node_config: what a client's operator would set, by client id.
        expected_work: how much a message will ask of a client, in any unit: the longest work is handed out first, which
            leaves the workers least idle at the end of a round. Results do not depend on it.
    """

    def __init__(
        self,
        pool: ForkPool,
        client_app: ClientApp,
        *,
        num_clients: int,
        seed: int,
        node_config: Callable[[int], dict[str, Any]],
        expected_work: Callable[[int, Message], float] = lambda client_id, message: 0.0,
    ) -> None:
        self._pool = pool
        self._client_app = client_app
        self._node_config = node_config
        self._expected_work = expected_work
        self._clients = {derive(seed, "node", client) >> 2: client for client in range(num_clients)}
        self._states: dict[int, RecordDict] = {}
        self._sent: dict[int, tuple[str, Message]] = {}
        self._replies: dict[str, Message] = {}
        self._run_id = derive(seed, "run") >> 2
        self._count = 0
        set_identity(run_id=self._run_id, node_id=SERVER_NODE_ID)

    @property
    def run(self) -> Run:
        """The run these messages belong to."""
        return Run.create_empty(self._run_id)

    def set_run(self, run: Run) -> None:
        """Do nothing: one grid serves one run."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message; ``Message(...)`` does the same."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for the workers and return their ids."""
        batch = list(messages)
        order = sorted(range(len(batch)), key=lambda i: self._work_of(batch[i]), reverse=True)
        ids = {i: self._push(batch[i]) for i in order}
        return [ids[i] for i in range(len(batch))]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; wait a moment for the first when there are none."""
        wanted = [one for one in message_ids]
        if not any(one in self._replies for one in wanted):
            for done in self._pool.collect(timeout=0.2):
                self._finish(done)
        return [self._replies.pop(one) for one in wanted if one in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies, those of clients that took longer than ``timeout`` left out."""
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while waiting and time.monotonic() < deadline:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _work_of(self, message: Message) -> float:
        client_id = self._clients.get(message.metadata.dst_node_id)
        if client_id is None or message.metadata.message_type.startswith("query"):
            return 0.0
        return self._expected_work(client_id, message)

    def _push(self, message: Message) -> str:
        self._count += 1
        message_id = f"message-{self._count}"
        set_message_id(message, message_id)
        node_id = message.metadata.dst_node_id
        if node_id not in self._clients:
            self._replies[message_id] = Message(Error(ERROR_RAISED, f"no node {node_id}"), reply_to=message)
        elif message.metadata.message_type.startswith("query"):
            value = handle(self._client_app, (message, self._context(node_id)))
            self._finish_message(message_id, message, value)
        else:
            self._sent[self._pool.submit("message", (message, self._context(node_id)))] = (message_id, message)
        return message_id

    def _context(self, node_id: int) -> Context:
        client_id = self._clients[node_id]
        config = {"partition-id": client_id, "num-partitions": len(self._clients), **self._node_config(client_id)}
        state = self._states.get(node_id) or RecordDict()
        return Context(run_id=self._run_id, node_id=node_id, node_config=config, state=state, run_config={})

    def _finish(self, done: Done) -> None:
        if done.task_id not in self._sent:
            return
        message_id, message = self._sent.pop(done.task_id)
        if done.error is not None:
            code = ERROR_LOST if done.lost else ERROR_RAISED
            self._replies[message_id] = Message(Error(code, done.error), reply_to=message)
        else:
            self._finish_message(message_id, message, done.value)

    def _finish_message(self, message_id: str, message: Message, value: tuple[Message, RecordDict]) -> None:
        reply, state = value
        if state:
            self._states[message.metadata.dst_node_id] = state
        self._replies[message_id] = reply


def handle(client_app: ClientApp, payload: tuple[Message, Context]) -> tuple[Message, RecordDict]:
    """Run one message through the ClientApp; return the reply and the node's state."""
    message, context = payload
    try:
        reply = client_app(message, context)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip()
        reply = Message(Error(ERROR_RAISED, reason), reply_to=message)
    return reply, context.state
