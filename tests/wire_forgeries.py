"""Hostile replies that only a wire can carry: objects that make no message, or are not all there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from forge import reply
from hostile import Case
from light_nodes import Parcel

from fedpeft.core import wire
from fedpeft.engines.flower_private import set_message_id

UNREADABLE, LATE, LOST, COUNTS = "error", "late", "lost", "ok"
UNSENDABLE = {
    # Flower's own records cannot be turned into bytes with these, so no wire carries them.
    "text for bytes",
    "weight 100000000000000",
    "weight '13'",
    "whole number beyond floats",
    "text for a number",
    "half a character in the echo",
}
SPOILT_BY_SENDING = {"shape of a kind that no array has"}
"""Of what these become no array can be made, so they are not read as far as the guard."""
MENDED_BY_SENDING = {"bool for a number": None, "weight True": 1}
"""Flower's bytes of a number make 1.0 of True: an honest reply, with this weight where it is not the sender's own."""


def carried(case: Case) -> tuple[str, int | None]:
    """Return what becomes of a hostile reply that came over a wire.

    Args:
        case: of the table, one of those that can be sent.

    Returns:
        What stands in ``clients.jsonl``, and the weight with which it counts, None for the honest one.
    """
    if case.name in SPOILT_BY_SENDING:
        return UNREADABLE, None
    if case.name in MENDED_BY_SENDING:
        return COUNTS, MENDED_BY_SENDING[case.name]
    if case.check == "duplicate":
        # A SuperLink takes one reply to a message; the second is dropped there.
        return COUNTS, None
    special = {"error reply": UNREADABLE, "silence": LATE}
    return special.get(case.name) or (f"rejected:{case.check}" if case.check else COUNTS), None


@dataclass(frozen=True, slots=True)
class WireCase:
    """One kind of parcel.

    Attributes:
        name: what is wrong.
        outcome: what stands in ``clients.jsonl``.
        make: from the instruction and the honest content to what is sent.
    """

    name: str
    outcome: str
    make: Callable[[Message, RecordDict], Parcel]


def spoilt_array(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Message, RecordDict], Parcel]:
    """Return a forgery in which one array's description is changed as JSON."""

    class Spoilt(Array):
        __qualname__ = "Array"

        def deflate(self) -> bytes:
            honest = super().deflate()
            head, _, body = honest.partition(b"\x00")
            changed = json.dumps(change(json.loads(body))).encode()
            return head.rpartition(b" ")[0] + b" %d\x00" % len(changed) + changed

    def make(message: Message, content: RecordDict) -> Parcel:
        arrays = dict(content.array_records[wire.ARRAYS])
        key = next(iter(arrays))
        one = arrays[key]
        record = ArrayRecord(arrays)
        # Afterwards: the constructor copies.
        record[key] = Spoilt(dtype=one.dtype, shape=one.shape, stype=one.stype, data=one.data)
        records = {**content, wire.ARRAYS: record}
        return Parcel.of(reply(RecordDict(records), message))

    return make


def no_message(message: Message, content: RecordDict) -> Parcel:
    """Send an array record in the place of a message."""
    honest = Parcel.of(reply(content, message))
    root = content.array_records[wire.ARRAYS]
    set_message_id(honest.message, root.object_id)
    contents = {key: one.deflate() for key, one in get_all_nested_objects(root).items()}
    return Parcel(message=honest.message, tree=get_object_tree(root), contents=contents)


def no_records(message: Message, content: RecordDict) -> Parcel:
    """Send an array record in the place of a message's content."""
    made = reply(content, message)
    made.__dict__["_content"] = content.array_records[wire.ARRAYS]
    return Parcel.of(made)


def in_anothers_name(message: Message, content: RecordDict) -> Parcel:
    """Say inside of the message that it is another node's, and replies to another message."""
    made = reply(content, message)
    honest = dict(made.metadata.__dict__)
    made.metadata.__dict__ |= {"_src_node_id": 12345, "_reply_to_message_id": "0" * 64, "_message_type": "evaluate"}
    parcel = Parcel.of(made)
    metadata = made.metadata
    object_id = metadata.message_id
    metadata.__dict__.update(honest)
    parcel.message = make_message(metadata=metadata, content=RecordDict())
    set_message_id(parcel.message, object_id)
    return parcel


def no_children(message: Message, content: RecordDict) -> Parcel:
    """Keep quiet of all objects but the first."""
    parcel = Parcel.of(reply(content, message))
    parcel.tree = ObjectTree(object_id=parcel.tree.object_id)
    return parcel


def cut_off(message: Message, content: RecordDict) -> Parcel:
    """Break the upload off before its largest object."""
    parcel = Parcel.of(reply(content, message))
    del parcel.contents[max(parcel.contents, key=lambda one: len(parcel.contents[one]))]
    return parcel


def damaged(message: Message, content: RecordDict) -> Parcel:
    """Send an object whose bytes are not those of its name."""
    parcel = Parcel.of(reply(content, message))
    largest = max(parcel.contents, key=lambda one: len(parcel.contents[one]))
    parcel.contents[largest] = parcel.contents[largest][:-1] + b"?"
    return parcel


def another_id(message: Message, content: RecordDict) -> Parcel:
    """Announce a message under an id that none of its objects has."""
    parcel = Parcel.of(reply(content, message))
    set_message_id(parcel.message, "f" * 64)
    return parcel


WIRE_CASES = [
    WireCase("no message", UNREADABLE, no_message),
    WireCase("no records", UNREADABLE, no_records),
    WireCase("no children", UNREADABLE, no_children),
    WireCase("pieces that are not there", UNREADABLE, spoilt_array(lambda told: {**told, "arraychunk_ids": [7]})),
    WireCase(
        "a piece two million times", UNREADABLE, spoilt_array(lambda told: {**told, "arraychunk_ids": [0] * 2**21})
    ),
    WireCase("pieces by name", UNREADABLE, spoilt_array(lambda told: {**told, "arraychunk_ids": "abc"})),
    WireCase("an array without a shape", UNREADABLE, spoilt_array(lambda told: {"arraychunk_ids": [0]})),
    WireCase("a list for an array", UNREADABLE, spoilt_array(lambda told: [told])),  # type: ignore[arg-type,return-value]
    WireCase("in another's name", COUNTS, in_anothers_name),
    WireCase("cut off", LATE, cut_off),
    WireCase("damaged", LATE, damaged),
    WireCase("announced under another id", LOST, another_id),
]
