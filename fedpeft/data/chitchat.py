"""Conversations of the Chit-Chat Challenge with the people who held them, as one table.

Source: Myers, Etchart and Fulda, "Conversational Scaffolding: An Analogy-Based Approach to Response Prioritization in
Open-Domain Dialogs", 2020. 7,168 conversations by 1,315 people who were paired at random and given a topic.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import DataError

MIN_TURNS = 4
"""Conversations with fewer turns are left out: nobody answered, or it ended with the greetings."""
_MEMBER = "chitchat_dataset/dataset.json"
_MAX_BYTES = 64 << 20


def build_chitchat(archive: Path, out: Path) -> None:
    """Write ``data.parquet`` into ``out`` from the wheel of chitchat-dataset 0.9.0.

    Columns: ``messages``, a list of {role, content} with the topic as ``system`` message where one was given; and
    ``group``, the person whose conversation it is. Rows keep the order of the file.

    A conversation has two people, and only one may own it: on the devices of both, what one trains on another would
    be tested on. The one who was spoken to first owns it, and speaks as the assistant: a model that learns the
    assistant's turns learns how the device's owner answers. Nearly half the conversations of the source are a single
    turn; those with fewer than `MIN_TURNS` are left out.

    People are called user-0001, user-0002 ..., those who own most conversations first.

    Args:
        archive: the wheel.
        out: an existing folder.

    Raises:
        DataError: the archive does not hold the file, or it has another form.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        kept = [one for one in map(read_conversation, _read(archive).values()) if one is not None]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{_MEMBER} has an unknown form ({error!r}): fetch it again") from error
    owned = Counter(owner for owner, _ in kept)
    ranking = sorted(owned, key=lambda owner: (-owned[owner], owner))
    names = {owner: f"user-{place:04d}" for place, owner in enumerate(ranking, start=1)}
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(message)), ("group", pa.string())])
    columns = [[messages for _, messages in kept], [names[owner] for owner, _ in kept]]
    pq.write_table(pa.table(columns, schema=schema), out / "data.parquet")


def read_conversation(conversation: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]] | None:
    """Return (owner, messages) of one conversation of the source, None for one that is too short.

    Args:
        conversation: ``prompt`` (the topic, may be missing) and ``messages``: turns, each a list of utterances with
            ``text`` and ``sender``. Utterances of a turn are joined by line breaks; empty ones count for nothing.
    """
    turns: list[tuple[str, str]] = []
    for utterances in conversation["messages"]:
        text = "\n".join(one["text"].strip() for one in utterances if one["text"].strip())
        if not text:
            continue
        sender = utterances[0]["sender"]
        if turns and turns[-1][0] == sender:
            turns[-1] = (sender, f"{turns[-1][1]}\n{text}")
        else:
            turns.append((sender, text))
    if len(turns) < MIN_TURNS:
        return None
    owner, topic = turns[1][0], (conversation.get("prompt") or "").strip()
    messages = [{"role": "system", "content": topic}] if topic else []
    messages += [{"role": "assistant" if who == owner else "user", "content": text} for who, text in turns]
    return owner, messages


def _read(archive: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(archive) as bundle:
            if bundle.getinfo(_MEMBER).file_size > _MAX_BYTES:
                raise DataError(f"{archive.name}: {_MEMBER} is larger than {_MAX_BYTES} bytes: refused")
            found: dict[str, Any] = json.loads(bundle.read(_MEMBER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{archive.name} is no sound wheel ({error}): delete it and fetch it again") from error
    return found
