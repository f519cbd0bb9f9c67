"""Which tokens a conversation becomes, and which of them are learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toy_lm

from fedpeft.core.errors import DataError
from fedpeft.tasks.chat import assistant_spans, in_spans, write_out
from fedpeft.tasks.writing import tokenise

TALK = (("user", "w1 w2"), ("assistant", "w3"), ("user", "w4"), ("assistant", "w5 w6"))
WRITTEN = (
    "<|im_start|> user w1 w2 <|im_end|> <|im_start|> assistant w3 <|im_end|> "
    "<|im_start|> user w4 <|im_end|> <|im_start|> assistant w5 w6 <|im_end|>"
)


def _shown(tokenizer: Any, found: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    ids, learned = found
    return " ".join(tokenizer.convert_ids_to_tokens(ids)), " ".join(tokenizer.convert_ids_to_tokens(ids[learned]))


def test_the_assistants_words_and_the_end_of_its_turns_are_learned() -> None:
    """Not its name at the beginning of a turn, which the prompt gives."""
    tokenizer = toy_lm.make_tokenizer()
    [found] = tokenise(tokenizer, [TALK], 64, "assistant")
    assert _shown(tokenizer, found) == (WRITTEN, "w3 <|im_end|> w5 w6 <|im_end|>")
    assert found[0].dtype == np.int32 and found[1].dtype == bool


def test_all_learns_everything_but_the_first_token() -> None:
    tokenizer = toy_lm.make_tokenizer()
    [(ids, learned)] = tokenise(tokenizer, [TALK], 64, "all")
    assert len(ids) == 18 and learned.tolist() == [False] + [True] * 17


@pytest.mark.parametrize("length", [4, 7, 8, 9, 10, 17, 18, 19])
def test_cutting_is_cutting(length: int) -> None:
    tokenizer = toy_lm.make_tokenizer()
    [(ids, learned)] = tokenise(tokenizer, [TALK], 64, "assistant")
    [(cut, cut_learned)] = tokenise(tokenizer, [TALK], length, "assistant")
    assert cut.tolist() == ids[:length].tolist() and cut_learned.tolist() == learned[:length].tolist()


def test_a_long_conversation_is_not_read_to_its_end_and_a_wordy_one_is() -> None:
    """Both have 400 messages, cut at 16 tokens, 128 characters to begin with. Spaces, which are no tokens, fill up the
    second one's first message, so that the first try yields too few tokens."""
    tokenizer, seen = toy_lm.make_tokenizer(), []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda messages, **more: seen.append(len(messages)) or apply(messages, **more)
    long = TALK * 100
    wordy = (("user", "w1 " + " " * 200 + " w2"), *TALK[1:], *TALK * 99)
    [first] = tokenise(tokenizer, [long], 16, "assistant")
    assert max(seen) < 60
    [second] = tokenise(tokenizer, [wordy], 16, "assistant")
    assert first[0].tolist() == second[0].tolist() and first[1].tolist() == second[1].tolist() and len(first[0]) == 16


def test_plain_texts_end_with_the_end_of_text() -> None:
    tokenizer = toy_lm.make_tokenizer(template=None)
    [found] = tokenise(tokenizer, [("w1 w2 ",)], 64, "assistant")
    assert _shown(tokenizer, found) == ("w1 w2 <|im_end|>", "w2 <|im_end|>")


def test_without_a_template_there_is_no_conversation() -> None:
    with pytest.raises(DataError, match="has no chat template: choose a chat model, or give"):
        tokenise(toy_lm.make_tokenizer(template=None), [TALK], 64, "all")


def test_what_a_template_refuses_is_said() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(DataError, match=r"refuses a conversation \(system, user ...\): no system role"):
        tokenise(toy_lm.make_tokenizer(template), [(("system", "w1"), ("user", "w2"))], 64, "all")


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """It marks the last message, so a turn reads differently once another follows."""
    template = (
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{{ ' <|im_end|> ' if loop.last else ' ' }}"
        "{% endfor %}"
    )
    tokenizer = toy_lm.make_tokenizer(template)
    with pytest.raises(DataError, match=r"rewrites earlier turns .*set task.train_on=all"):
        tokenise(tokenizer, [TALK], 64, "assistant")
    assert len(tokenise(tokenizer, [TALK], 64, "all")) == 1


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow does not tell where tokens stand"):
        tokenise(Slow(), [("w1",)], 64, "all")


def test_spans_are_the_turns_as_written() -> None:
    tokenizer = toy_lm.make_tokenizer()
    text = write_out(tokenizer, TALK)
    spans = assistant_spans(tokenizer, TALK, text, len(text))
    assert [text[low:high] for low, high in spans] == ["w3<|im_end|>", "w5 w6<|im_end|>"]
    assert assistant_spans(tokenizer, TALK, text, spans[1][0]) == spans[:1]


def test_in_spans_leaves_ends_out() -> None:
    assert in_spans(np.array([0, 2, 4, 6, 8]), [(2, 6), (8, 9)]).tolist() == [False, True, True, False, True]
