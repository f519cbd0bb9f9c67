"""Who the clients are: learned by asking, because Flower's node ids are random."""

from __future__ import annotations

import logging

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.core import wire
from fedpeft.core.errors import WireError
from fedpeft.core.events import ClientLeftOut, Observer, tell
from fedpeft.core.types import ClientInfo

log = logging.getLogger(__name__)


class Roster:
    """The clients that have said who they are, by node id.

    A node is asked once, and again when it has been away: a device may be mended and come back. Nodes that claim the
    client id of another are left out, all of them: nobody can tell which one lies.

    Attributes:
        observers: told of each node that is left out.
        left_out: why, by node id, of all that ever were.
    """

    def __init__(self) -> None:
        self._by_node: dict[int, ClientInfo] = {}
        self._refused: set[int] = set()
        self._contested: set[int] = set()
        self.observers: tuple[Observer, ...] = ()
        self.left_out: dict[int, str] = {}

    def refresh(self, grid: Grid, timeout: float | None = None) -> list[ClientInfo]:
        """Ask the nodes that are new and return the clients now there, by client id.

        Args:
            grid: carries the questions.
            timeout: seconds to wait for answers; nodes that give none are left out from then on, or each round would
                wait for them anew. None waits for all.
        """
        present = set(grid.get_node_ids())
        self._refused &= present
        unknown = sorted(present - self._by_node.keys() - self._refused)
        questions = [Message(RecordDict(), dst_node_id=node, message_type=wire.HELLO_QUERY) for node in unknown]
        silent = set(unknown)
        for reply in grid.send_and_receive(questions, timeout=timeout) if questions else ():
            silent.discard(reply.metadata.src_node_id)
            # Who went away over the question may answer it next time.
            if not (reply.has_error() and reply.error.code in wire.LOST_CODES):
                self._learn(reply)
        for node in sorted(silent):
            self._leave_out(node, "it did not say who it is")
        self._refused |= silent
        self._by_node = {node: info for node, info in self._by_node.items() if node in present}
        return sorted(self._by_node.values(), key=lambda info: info.client_id)

    def get(self, node_id: int) -> ClientInfo | None:
        """Return who a node is, None while it has not said."""
        return self._by_node.get(node_id)

    def _learn(self, reply: Message) -> None:
        node_id = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise WireError("hello", reply.error.reason or "no reason given")
            info = wire.read_hello(reply.content, node_id)
        except WireError as error:
            self._refused.add(node_id)
            self._leave_out(node_id, error.reason)
            return
        twins = [n for n, other in self._by_node.items() if other.client_id == info.client_id and n != node_id]
        if twins or info.client_id in self._contested:
            self._leave_out(node_id, f"nodes {[*twins, node_id]} claim client {info.client_id}, which others claim too")
            # Remembered, or the next to claim it would pass for the only one.
            self._contested.add(info.client_id)
            self._refused.update([*twins, node_id])
            for twin in twins:
                del self._by_node[twin]
            return
        self._by_node[node_id] = info

    def _leave_out(self, node_id: int, reason: str) -> None:
        # A grid that knows whose a node is has said so.
        self.left_out[node_id] = reason if reason.startswith("client ") else f"node {node_id}: {reason}"
        log.warning("node %d is left out: %s", node_id, reason)
        tell(self.observers, ClientLeftOut(reason=self.left_out[node_id]))
