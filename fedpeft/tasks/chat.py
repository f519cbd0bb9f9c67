"""Conversations as a model reads them: written out by its chat template, with the places of the assistant's turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpeft.core.errors import DataError

Conversation = Sequence[tuple[str, str]]
"""Messages in order, each (role, content)."""

_PLAIN = "or give conversations as one column of plain text (set task.text_column)"


def write_out(tokenizer: Any, conversation: Conversation, *, prompt: bool = False) -> str:
    """Return a conversation as text.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversation: the messages.
        prompt: end with what begins an assistant's turn.

    Raises:
        DataError: the tokenizer has no template, or the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"the model's tokenizer has no chat template: choose a chat model, {_PLAIN}")
    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # templates raise what they like, by jinja's raise_exception or by mishap
        roles = ", ".join(role for role, _ in conversation[:6])
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the model's chat template refuses a conversation ({roles} ...): {reason}; change it, {_PLAIN}"
        ) from error
    return text


def assistant_spans(tokenizer: Any, conversation: Conversation, text: str, end: int) -> list[tuple[int, int]]:
    """Return where the assistant's turns stand in ``text``: what it would have to write itself.

    Turn i reaches from the end of the messages before it, written out as a prompt, to the end of the messages up to it:
    the words and the mark that ends the turn, without the white space that templates put behind it. This needs a
    template that writes earlier messages alike whether later ones follow or not.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversation: the messages.
        text: all of them, written out.
        end: characters of ``text`` that are used; turns behind them are not looked for.

    Returns:
        (start, end) character positions, ascending.

    Raises:
        DataError: the template is of another kind.
    """
    spans = []
    for place, (role, _) in enumerate(conversation):
        if role != "assistant":
            continue
        before = write_out(tokenizer, conversation[:place], prompt=True)
        if len(before) >= end:
            break
        whole = write_out(tokenizer, conversation[: place + 1])
        if not (whole.startswith(before) and text.startswith(whole)):
            raise DataError(
                "the model's chat template rewrites earlier turns when others follow, so the assistant's turns cannot "
                "be told apart (set task.train_on=all)"
            )
        spans.append((len(before), len(whole.rstrip())))
    return spans


def in_spans(starts: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return which positions lie in one of the spans, bool (n,).

    Args:
        starts: ascending positions, int (n,).
        spans: (start, end) pairs; the end is not part of the span.
    """
    inside = np.zeros(len(starts), dtype=bool)
    for low, high in spans:
        inside[np.searchsorted(starts, low) : np.searchsorted(starts, high)] = True
    return inside
