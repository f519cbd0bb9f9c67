"""Prompt tuning and P-tuning: attention by hand, against transformers' own embeddings path and HF peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import T5Config
from transformers import T5ForSequenceClassification as T5

import fedpeft.methods.peft_tuners  # noqa: F401 - makes our own kind known to peft
from fedpeft.core.errors import ConfigError
from fedpeft.methods.base import extract_tensors
from fedpeft.methods.prompt import PromptTuning, PTuning

ALL = (*tiny.ENCODERS, *tiny.DECODERS)
METHODS = {
    "prompt": PromptTuning(num_virtual_tokens=3),
    "normal": PromptTuning(num_virtual_tokens=3, init="normal"),
    "mlp": PTuning(num_virtual_tokens=3, hidden_size=8),
    "lstm": PTuning(num_virtual_tokens=3, encoder="lstm", hidden_size=8),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], str]:
    """Folders by family and by whether it is a causal language model."""
    return tiny.write_all(tmp_path_factory.mktemp("prompt"))


def test_prompt_by_hand() -> None:
    """The model's word is (1, 1); the prompt (3, -3) has RMS norm (1, -1). Queries are zero: equal weights.

    The word sees the prompt and itself: ((1, -1) + (1, 1)) / 2 = (1, 0). The prompt, first, sees itself: (1, -1).
    """
    tunable = PromptTuning(num_virtual_tokens=1).attach(tiny.by_hand(), "freeze")
    with torch.no_grad():
        tunable.shared["base_model.model.prompt.embedding"].copy_(torch.tensor([[3.0, -3.0]]))
    want = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(tiny.attended(tunable.model), want, rtol=0, atol=1e-5)


def test_mlp_by_hand() -> None:
    """E = (1, -2), W1 = I: ReLU gives (1, 0); W2 = 2 I, b2 = (-1, 3): (1, 3); W3 = [[1, 1], [0, 1]]: (4, 3)."""
    tunable = PTuning(num_virtual_tokens=1, hidden_size=None).attach(tiny.by_hand(), "freeze")
    values = {
        "embedding": [[1, -2]],
        "mlp.0.weight": [[1, 0], [0, 1]],
        "mlp.0.bias": [0, 0],
        "mlp.2.weight": [[2, 0], [0, 2]],
        "mlp.2.bias": [-1, 3],
        "mlp.4.weight": [[1, 1], [0, 1]],
        "mlp.4.bias": [0, 0],
    }
    assert set(tunable.shared) == {f"base_model.model.prompt.{key}" for key in values}
    with torch.no_grad():
        for key, value in values.items():
            tunable.shared[f"base_model.model.prompt.{key}"].copy_(torch.tensor(value))
        torch.testing.assert_close(tunable.model.prompt.values(), torch.tensor([[4.0, 3.0]]))


@pytest.mark.parametrize("family", ALL)
def test_prompt_and_text_are_one_text(family: str, bases: dict[tuple[str, bool], str]) -> None:
    """A prompt made of a text's first three words gives the whole text's logits, read one by one without padding."""
    ids = tiny.texts()["input_ids"][:1]
    base = tiny.load(bases[family, False])
    # Segment and position embeddings are added by the model; words without them are the prompt.
    words = base.get_input_embeddings()(ids[:, :3]).detach()[0]
    with torch.no_grad():
        want = base(input_ids=ids).logits
        tunable = PromptTuning(num_virtual_tokens=3).attach(base, "freeze")
        tunable.shared["base_model.model.prompt.embedding"].copy_(words)
        got = tunable.model(input_ids=ids[:, 3:], attention_mask=torch.ones(1, 4)).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("family", "causal"), [*((f, False) for f in ALL), ("gpt2", True), ("llama", True)])
@pytest.mark.parametrize("head", ["share", "freeze"])
def test_what_is_saved_gives_the_same_logits(
    name: str, family: str, causal: bool, head: str, bases: dict[tuple[str, bool], str], tmp_path: Path
) -> None:
    """HF peft's own kinds where it gives these outputs; ours for classifiers on decoders and without their head."""
    from peft import PeftModel

    method = METHODS[name]
    tunable = method.attach(tiny.load(bases[family, causal], causal=causal), head)
    kind = tiny.save(method, tunable, tmp_path, bases[family, causal])
    ours = not causal and (head == "freeze" or family in tiny.DECODERS)
    hugging_face = "P_TUNING" if isinstance(method, PTuning) else "PROMPT_TUNING"
    assert kind == ("VIRTUAL_TOKENS" if ours else hugging_face)
    fresh = tiny.load(bases[family, causal], causal=causal)
    with torch.no_grad():
        before, want = fresh(**tiny.texts()).logits, tunable.model(**tiny.texts()).logits
        got = PeftModel.from_pretrained(fresh, str(tmp_path))(**tiny.texts()).logits
    assert want.shape == before.shape
    # HF peft gives logits for the virtual tokens too.
    torch.testing.assert_close(got[:, -want.shape[1] :], want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, want, atol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_padding_changes_nothing(family: str, bases: dict[tuple[str, bool], str]) -> None:
    """Decoders classify by the last token of each text; HF peft's own prompts would let them read the padding."""
    tunable = PromptTuning(num_virtual_tokens=3).attach(tiny.load(bases[family, False]), "share")
    tiny.assert_padding_changes_nothing(tunable.model)


def test_segments_grow_with_the_prompt(bases: dict[tuple[str, bool], str]) -> None:
    """Virtual tokens are of segment 0, and a pair's second segment stays where its words are."""
    ids, types = tiny.texts()["input_ids"][:1], torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
    base = tiny.load(bases["bert", False])
    with torch.no_grad():
        want, without = base(input_ids=ids, token_type_ids=types).logits, base(input_ids=ids).logits
        words = base.get_input_embeddings()(ids[:, :3])[0]
        tunable = PromptTuning(num_virtual_tokens=3).attach(base, "freeze")
        tunable.shared["base_model.model.prompt.embedding"].copy_(words)
        got = tunable.model(input_ids=ids[:, 3:], token_type_ids=types[:, 3:], attention_mask=torch.ones(1, 4)).logits
    assert (want - without).abs().max() > 1e-5
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["prompt", "mlp"])
@pytest.mark.parametrize("family", tiny.DECODERS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_reads_the_prompt_once(
    name: str, family: str, use_cache: bool, bases: dict[tuple[str, bool], str]
) -> None:
    tunable = METHODS[name].attach(tiny.load(bases[family, True], causal=True), "share")
    tiny.shift(tunable.trainable, 1.0)
    tiny.assert_generation_is_reading(tunable.model, use_cache=use_cache)


def test_a_prompt_starts_from_the_vocabulary(bases: dict[tuple[str, bool], str]) -> None:
    base = tiny.load(bases["bert", False], dtype="bfloat16")
    words = base.get_input_embeddings().weight.detach().float().numpy()
    tunable = PromptTuning(num_virtual_tokens=5).attach(base, "freeze")
    (prompt,) = extract_tensors(tunable.shared).values()
    assert prompt.dtype == np.float32
    assert all((words == row).all(axis=1).any() for row in prompt)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    model = T5(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, decoder_start_token_id=0))
    with pytest.raises(ConfigError, match=r"prompts are not defined for T5.* \(choose method=lora\)"):
        PromptTuning().attach(model, "share")


@pytest.mark.parametrize(
    ("method", "settings", "names"),
    [
        (PromptTuning, {"num_virtual_tokens": 1001, "init": "text"}, ["num_virtual_tokens", "init"]),
        (
            PTuning,
            {"num_virtual_tokens": True, "encoder": "cnn", "hidden_size": 0},
            ["num_virtual_tokens", "encoder", "hidden_size"],
        ),
    ],
)
def test_all_wrong_arguments_are_named_at_once(method: Any, settings: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        method(**settings)
    assert [line.split()[0] for line in caught.value.problems] == names
    assert all(f"(set method.{name})" in line for name, line in zip(names, caught.value.problems, strict=True))


def test_prompts_take_positions() -> None:
    assert (PromptTuning(num_virtual_tokens=7).virtual_tokens, PTuning(num_virtual_tokens=7).virtual_tokens) == (7, 7)
