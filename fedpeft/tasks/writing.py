"""Texts and conversations as tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpeft.core.errors import DataError
from fedpeft.tasks.chat import Conversation, assistant_spans, in_spans, write_out

_CHARACTERS = 8
"""Characters a token that the first try reads; texts that turn out too short are read whole."""

Tokens = tuple[np.ndarray, np.ndarray]
"""Token ids, (length,) int32, and which of them are learned, (length,) bool."""


def tokenise(tokenizer: Any, texts: Sequence[Any], max_length: int, train_on: str) -> list[Tokens]:
    """Return the first ``max_length`` tokens of each row.

    Conversations are written out by the tokenizer's chat template. Plain texts get the tokenizer's own special tokens
    and its end-of-text token behind them, and are learned whole. Nothing predicts a first token, so none is learned.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        texts: a conversation ((role, content), ...) or a plain text (text,) for each row.
        max_length: tokens a row.
        train_on: ``assistant`` learns the assistant's turns of conversations, ``all`` every token.

    Raises:
        DataError: no chat template, one that refuses a conversation, or a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{type(tokenizer).__name__} does not tell where tokens stand: a fast tokenizer is needed")
    is_chat = bool(texts) and not isinstance(texts[0][0], str)
    spans = is_chat and train_on == "assistant"
    # Most of a long conversation is cut off again, and tokenising it would take most of the time.
    begun = [_beginning(row, _CHARACTERS * max_length) for row in texts]
    found = _tokenise(tokenizer, begun, max_length, is_chat, spans)
    short = [i for i, (ids, _) in enumerate(found) if len(ids) < max_length and len(begun[i]) < len(texts[i])]
    for i, whole in zip(
        short, _tokenise(tokenizer, [texts[i] for i in short], max_length, is_chat, spans), strict=True
    ):
        found[i] = whole
    return found


def _beginning(row: Sequence[Any], most: int) -> Sequence[Any]:
    """Return a conversation's first messages, up to the one with the given character; a plain text is one message."""
    total = 0
    for place, message in enumerate(row, start=1):
        total += len(message[-1])
        if total >= most:
            return row[:place]
    return row


def _tokenise(tokenizer: Any, rows: Sequence[Any], max_length: int, is_chat: bool, spans: bool) -> list[Tokens]:
    if not rows:
        return []
    end = tokenizer.eos_token or ""
    written = [write_out(tokenizer, row) if is_chat else row[0] + end for row in rows]
    encoded = tokenizer(
        written, add_special_tokens=not is_chat, return_offsets_mapping=True, verbose=False, padding=False
    )
    result = []
    for row, text, ids, places in zip(rows, written, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        learned = np.arange(min(len(ids), max_length)) > 0
        if spans:
            learned &= _in_turns(tokenizer, row, text, places[:max_length])
        result.append((np.asarray(ids[:max_length], dtype=np.int32), learned))
    return result


def _in_turns(tokenizer: Any, conversation: Conversation, text: str, places: Sequence[tuple[int, int]]) -> np.ndarray:
    starts = np.asarray([start for start, _ in places], dtype=np.int64)
    end = max((stop for _, stop in places), default=0)
    return in_spans(starts, assistant_spans(tokenizer, conversation, text, end))
