"""The private names of Flower that a ServerApp's grid needs: replies object by object, as they arrive.

Beside ``flower_private``; a contract test pins these too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

CHUNK_BYTES = 2**17
"""Bytes of an array that travel in one request.

Flower gives up a request that had no answer for 30 seconds, and has two on their way at once; of its own five MiB a
link of 0.25 Mbit/s carries a fifth in that time.
"""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A reply that a SuperLink has begun to hold.

    Args:
        metadata: what the SuperLink has checked: who sent it, and what it replies to.
        object_ids: of all that belongs to it, its own first.
    """

    metadata: Any
    object_ids: tuple[str, ...]

    @property
    def message_id(self) -> str:
        """The reply's id."""
        return str(self.metadata.message_id)

    @property
    def reply_to(self) -> str:
        """Id of the message that it replies to."""
        return str(self.metadata.reply_to_message_id)


def fit_chunks() -> None:
    """Have this process cut arrays so that each piece passes a slow link before Flower loses patience."""
    from flwr.app.message import array

    array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE = CHUNK_BYTES


def push(grid: Grid, messages: Sequence[Message]) -> list[str]:
    """Send messages by Flower's grid, whatever their receivers do meanwhile.

    A device that says it has received what is not yet there has the SuperLink forget it, and Flower's grid would fail
    with the run. So it would where an object was stored and the SuperLink's word of it was lost.

    Args:
        grid: Flower's, of a ServerApp's process.
        messages: to send.

    Raises:
        ObjectPushError: the SuperLink waits for an object and does not take it.
    """
    client = _client(grid)
    push_object = client.PushObject

    def push_what_is_waited_for(request: Any) -> Any:
        response = push_object(request)
        if not response.stored and read_object(grid, request.object_id) != b"":
            response.stored = True
        return response

    client.PushObject = push_what_is_waited_for
    try:
        return list(grid.push_messages(messages))
    finally:
        del client.PushObject


def envelopes(grid: Grid, message_ids: Iterable[str]) -> list[Envelope]:
    """Return the replies that have come to messages; the SuperLink names each of them once.

    Args:
        grid: Flower's, of a ServerApp's process.
        message_ids: of the messages.
    """
    from flwr.common.serde import message_from_proto
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    found = _client(grid).PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
    pairs = zip(found.messages_list, found.message_object_trees, strict=True)
    return [
        Envelope(
            message_from_proto(message).metadata,
            tuple(dict.fromkeys([tree.object_id, *(one.object_id for one in iterate_object_tree(tree))])),
        )
        for message, tree in pairs
    ]


def read_object(grid: Grid, object_id: str) -> bytes | None:
    """Return an object's bytes, b"" while its sender has not sent it, None where it will not come any more."""
    from flwr.proto.message_pb2 import PullObjectRequest

    request = PullObjectRequest(node=grid.node, run_id=grid.run.run_id, object_id=object_id)  # type: ignore[attr-defined]
    found = _client(grid).PullObject(request)
    if not found.object_found:
        return None
    return bytes(found.object_content) if found.object_available else b""


def release(grid: Grid, message_id: str) -> None:
    """Let the SuperLink delete what belongs to a message, whether it has come whole or not."""
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

    run_id = grid.run.run_id
    request = ConfirmMessageReceivedRequest(node=grid.node, run_id=run_id, message_object_id=message_id)  # type: ignore[attr-defined]
    _client(grid).ConfirmMessageReceived(request)


def assemble(envelope: Envelope, contents: Mapping[str, bytes], *, max_bytes: int) -> Message:
    """Return the message that an envelope and its objects make; who it is from and for says the envelope alone.

    Args:
        envelope: as `envelopes` gives it.
        contents: bytes of all its objects.
        max_bytes: of its arrays; an array may name one piece a million times.

    Raises:
        Exception: of any kind; the bytes are whatever the sender chose.
    """
    from flwr.app.message import make_message
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    if (claimed := _array_bytes(contents)) > max_bytes:
        raise ValueError(f"its arrays would take {claimed} bytes, at most {max_bytes} are taken")
    found = inflate_object_from_contents(envelope.message_id, dict(contents))
    if not isinstance(found, Message):
        raise TypeError(f"a {type(found).__name__} in the place of a message")
    if found.has_error():
        return make_message(metadata=envelope.metadata, error=found.error)
    if not isinstance(found.content, RecordDict):
        raise TypeError(f"a {type(found.content).__name__} in the place of a message's content")
    return make_message(metadata=envelope.metadata, content=found.content)


def _array_bytes(contents: Mapping[str, bytes]) -> int:
    """Return the bytes that arrays would have when they are put together."""
    from flwr.app import Array
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_head_values_from_object_content,
    )

    total = 0
    for content in contents.values():
        kind, pieces, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            named = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            total += sum(len(contents[pieces[index]]) for index in named)
    return total


def _client(grid: Grid) -> Any:
    return grid._runtime_client  # type: ignore[attr-defined]


def failed(envelope: Envelope, code: int, reason: str) -> Message:
    """Return an error in the place of a reply that cannot be had."""
    from flwr.app import Error
    from flwr.app.message import make_message

    return make_message(metadata=envelope.metadata, error=Error(code, reason))
