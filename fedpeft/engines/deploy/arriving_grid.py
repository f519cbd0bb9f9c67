"""A decorator around Flower's grid that waits for nobody, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedpeft.core.errors import printable
from fedpeft.engines import flower_private_server as flower
from fedpeft.server.passing_grid import PassingGrid

ERROR_UNREADABLE, ERROR_UNAVAILABLE = 2, 3
"""Flower's codes for a reply that is an error, and for one that did not come whole."""
SLACK_BYTES = 2**26
"""Bytes that a reply may have beyond its arrays: headers, metrics, and what is between them."""


@dataclass(slots=True)
class _Arriving:
    """A reply of which not all is there."""

    envelope: flower.Envelope
    contents: dict[str, bytes] = field(default_factory=dict)
    num_bytes: int = 0


class ArrivingGrid(PassingGrid):
    """Takes replies object by object, as their senders' links carry them.

    Flower's grid knows of a reply when its upload begins, and then waits for its end: one slow link holds up all the
    others, and no deadline counts meanwhile. It fails, and the run with it, where a reply's bytes make no message. Here
    a reply is pulled piece by piece, and is there when it is whole; one that cannot be read is its sender's error.

    One exchange follows the other: who pushes has given up what is still missing of before. A SuperLink would keep that
    to the end of the run, and hand out old instructions first; here it drops them, a download that is under way ends,
    and late replies are dropped as they come.

    Args:
        inner: Flower's grid, of a ServerApp's process.
        max_bytes: of the arrays of a reply; what is larger is not taken into memory.
    """

    def __init__(self, inner: Grid, *, max_bytes: int) -> None:
        super().__init__(inner)
        self._max_bytes = max_bytes + SLACK_BYTES
        self._asked: set[str] = set()
        self._given_up: set[str] = set()
        self._arriving: list[_Arriving] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Give up what is missing, and send."""
        self._give_up()
        ids = flower.push(self.inner, list(messages))
        self._asked |= {one for one in ids if one}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are whole; whoever still sends is asked for no more than is there."""
        # A SuperLink forgets a message when it has named the reply, and says of a second question that nobody knows it.
        named = {one.envelope.reply_to for one in self._arriving}
        wanted = self._given_up.union(message_ids) - named
        for envelope in flower.envelopes(self.inner, wanted) if wanted else []:
            self._asked.discard(envelope.reply_to)
            if envelope.reply_to in self._given_up:
                self._given_up.discard(envelope.reply_to)
                flower.release(self.inner, envelope.message_id)
            else:
                self._arriving.append(_Arriving(envelope))
        looked_at, self._arriving = self._arriving, []
        replies = []
        for one in looked_at:
            reply = self._look(one)
            if reply is None:
                self._arriving.append(one)
            else:
                flower.release(self.inner, one.envelope.message_id)
                if reply.has_error():
                    # A device that is gone may never have fetched what it was asked.
                    flower.release(self.inner, one.envelope.reply_to)
                replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Refuse: who waits is the grid around this one.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("push, then pull")

    def _look(self, one: _Arriving) -> Message | None:
        """Take what is there of a reply; return it when it is whole or cannot be, None while it is on its way."""
        envelope = one.envelope
        for object_id in envelope.object_ids:
            if object_id in one.contents:
                continue
            content = flower.read_object(self.inner, object_id)
            if content is None:
                return flower.failed(envelope, ERROR_UNAVAILABLE, "its upload broke off")
            if not content:
                return None
            one.contents[object_id] = content
            one.num_bytes += len(content)
            if one.num_bytes > self._max_bytes:
                reason = f"its reply has more than the {self._max_bytes} bytes that are taken (guard.max_bytes)"
                return flower.failed(envelope, ERROR_UNREADABLE, reason)
        try:
            return flower.assemble(envelope, one.contents, max_bytes=self._max_bytes)
        except Exception as error:
            reason = f"its reply cannot be read: {type(error).__name__}: {printable(str(error))}"
            return flower.failed(envelope, ERROR_UNREADABLE, reason)

    def _give_up(self) -> None:
        for one in self._arriving:
            flower.release(self.inner, one.envelope.message_id)
        for message_id in self._asked:
            flower.release(self.inner, message_id)
        self._given_up |= self._asked
        self._asked, self._arriving = set(), []
