"""Losses of language models: laws, then numbers by hand, then what the shortcut for logits must not change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import toy_lm
from torch.nn.functional import cross_entropy

from fedpeft.core.errors import ConfigError
from fedpeft.tasks import causal_lm
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.token_loss import token_losses

VOCABULARY = 7 + len(toy_lm.WORDS)


def make_task(train_on: str = "assistant", rows: int = 8, max_length: int = 24) -> CausalLM:
    texts = [tuple((m["role"], m["content"]) for m in row["messages"]) for row in toy_lm.conversations(rows)]
    groups = np.arange(rows) % 2
    return CausalLM.encode(texts, groups, 2, toy_lm.make_tokenizer(), max_length, train_on)


def plain_losses(model: Any, batch: Any) -> torch.Tensor:
    """The textbook way: all logits, shifted, averaged over each row's learned tokens."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    length = batch["labels"].shape[1]
    logits = model(**inputs).logits[:, -length:][:, :-1]
    labels = batch["labels"][:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return losses.view(labels.shape).sum(1) / (labels != -100).sum(1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_losses_and_gradients_are_those_of_all_logits(kind: str, train_on: str, monkeypatch: Any) -> None:
    """Pieces of 5 tokens, so that there are several. float32 sums in another order: 1e-5."""
    monkeypatch.setattr("fedpeft.tasks.token_loss._PIECE", 5)
    task, model = make_task(train_on), toy_lm.make_model(kind)
    model.eval()
    batch = task.collate(np.arange(8))
    found, gradients = [], []
    for losses in (task.per_example_loss(model, batch), plain_losses(model, batch)):
        model.zero_grad()
        losses.mean().backward()
        found.append(losses.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert found[0].shape == (8,) and found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_an_examples_loss_does_not_depend_on_its_neighbours() -> None:
    task, model = make_task(), toy_lm.make_model().eval()
    together = task.per_example_loss(model, task.collate(np.arange(8))).detach()
    alone = [task.per_example_loss(model, task.collate(np.array([row]))).item() for row in range(8)]
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


def test_scores_are_the_same_however_rows_are_dealt_out(monkeypatch: Any) -> None:
    """Sums over tokens, not means of means: conversations of different lengths weigh as they should."""
    task, model = make_task(), toy_lm.make_model().eval()
    whole = task.score(model, np.arange(8))
    parts = task.score(model, np.array([0, 1, 2])) + task.score(model, np.arange(3, 8))
    monkeypatch.setattr(causal_lm, "MAX_SCORED", 30)
    small = task.score(model, np.arange(8))
    for other in (parts, small):
        assert other.mean_loss == pytest.approx(whole.mean_loss, rel=1e-6)
        assert other.correct.tolist() == whole.correct.tolist() and other.count.tolist() == whole.count.tolist()
    assert whole.num_examples == small.num_examples == parts.num_examples == 8
    assert whole.num_answers == task.num_learned.sum() and len(set(task.num_learned.tolist())) > 1
    losses = task.per_example_loss(model, task.collate(np.arange(8))).detach().numpy()
    assert whole.loss == pytest.approx(float((losses * task.num_learned).sum()), rel=1e-5)


def test_groups_count_their_own_tokens() -> None:
    task, model = make_task(), toy_lm.make_model().eval()
    scores = task.score(model, np.arange(8))
    assert scores.count.tolist() == [task.num_learned[::2].sum(), task.num_learned[1::2].sum()]


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary() -> None:
    """With an output layer of zeros all 47 tokens are equally likely: loss ln 47 = 3.850, perplexity 47. All logits
    tie, and the first token, <unk>, which is never said, is taken for the guess: no token is right."""
    task, model = make_task(), toy_lm.make_model().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    scores = task.score(model, np.arange(8))
    assert scores.mean_loss == pytest.approx(math.log(47), rel=1e-6) and VOCABULARY == 47
    assert scores.accuracy == 0
    assert task.per_example_loss(model, task.collate(np.arange(8))).tolist() == pytest.approx([math.log(47)] * 8)


def test_token_losses_by_hand() -> None:
    """Logits (0, ln 3): probabilities 1/4 and 3/4, losses ln 4 and ln 4/3."""
    logits = torch.tensor([[0.0, math.log(3)]] * 2)
    assert token_losses(logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_virtual_tokens_before_the_text_change_no_position() -> None:
    """Prompt tuning puts three before each text; the textbook way on the last logits agrees."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    task = make_task()
    wrapped = get_peft_model(
        toy_lm.make_model(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    )
    wrapped.eval()
    batch = task.collate(np.arange(8))
    torch.testing.assert_close(
        task.per_example_loss(wrapped, batch), plain_losses(wrapped, batch), rtol=1e-5, atol=1e-6
    )


def test_the_output_layer_is_whole_again_afterwards() -> None:
    task, model = make_task(), toy_lm.make_model().eval()
    task.score(model, np.arange(2))
    assert model(**{"input_ids": torch.zeros(2, 5, dtype=torch.long)}).logits.shape == (2, 5, VOCABULARY)
    assert not model.lm_head._forward_pre_hooks


def test_a_model_without_an_output_layer_is_refused() -> None:
    task = make_task()
    with pytest.raises(ConfigError, match="Identity has no output layer over a vocabulary"):
        task.per_example_loss(torch.nn.Identity(), task.collate(np.arange(2)))


def test_batches_are_padded_behind_and_padding_is_not_learned() -> None:
    task = make_task("all")
    rows = np.argsort(task.lengths(np.arange(8)))[[0, -1]]
    batch = task.collate(rows)
    short, long = task.lengths(rows)
    assert batch["input_ids"].shape == (2, long) and short < long
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert (batch["input_ids"][0, short:] == 3).all() and (batch["labels"][0, short:] == -100).all()
    assert (batch["labels"][0, 1:short] == batch["input_ids"][0, 1:short]).all() and batch["labels"][0, 0] == -100
    assert task.labels.tolist() == [0] * 8


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    """The first turn in full, its end included, or as much of it as asked for."""
    task = CausalLM.encode([(("user", "w1"), ("assistant", "w2 w3"), ("user", "w4"))], np.zeros(1), 1,
                           toy_lm.make_tokenizer(), 64)  # fmt: skip
    show = lambda ids: task.tokenizer.convert_ids_to_tokens(ids)
    prompt, reply = task.prompt(0, 30)
    assert show(prompt) == ["<|im_start|>", "user", "w1", "<|im_end|>", "<|im_start|>", "assistant"]
    assert show(reply) == ["w2", "w3", "<|im_end|>"]
    assert show(task.prompt(0, 2)[1]) == ["w2", "w3"]


def test_a_prompt_of_plain_text_is_its_first_half() -> None:
    text = " ".join(f"w{i % 40}" for i in range(200))
    task = CausalLM.encode([("w1 w2 w3 w4 w5",), (text,)], np.zeros(2), 1, toy_lm.make_tokenizer(None), 200)
    prompt, rest = task.prompt(0, 2)
    assert task.tokenizer.convert_ids_to_tokens(prompt) == ["w1", "w2", "w3"]
    assert task.tokenizer.convert_ids_to_tokens(rest) == ["w4", "w5"]
    assert [len(part) for part in task.prompt(1, 30)] == [64, 30]
