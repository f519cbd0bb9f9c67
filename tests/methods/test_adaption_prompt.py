"""LLaMA-Adapter: the gated sum by hand, where it is defined, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from fedpeft.core.errors import ConfigError
from fedpeft.methods.adaption_prompt import LlamaAdapter
from fedpeft.methods.base import extract_tensors


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], str]:
    """Folders by family and by whether it is a causal language model."""
    root = tmp_path_factory.mktemp("adaption")
    made = {(family, causal): root / f"{family}-{causal}" for family in tiny.DECODERS for causal in (False, True)}
    made[("bert", False)] = root / "bert"
    return {(family, causal): tiny.write(path, family, causal=causal) for (family, causal), path in made.items()}


@pytest.mark.parametrize(("gate", "want"), [(0.0, [1.0, 1.0]), (0.5, [2.0, 1.5])])
def test_by_hand(gate: float, want: list[float]) -> None:
    """Prompts (4, 0) and (0, 2) are their own keys and values; the query is zero, so each weighs 1/2: (2, 1).

    The word alone attends to itself: (1, 1). With gate 0.5 the sum is (1, 1) + 0.5 (2, 1) = (2, 1.5).
    """
    tunable = LlamaAdapter(num_virtual_tokens=2).attach(tiny.by_hand(), "freeze")
    where = "base_model.model.model.layers.0.self_attn."
    with torch.no_grad():
        tunable.shared[where + "adaption_prompt"].copy_(torch.tensor([[[4.0, 0.0], [0.0, 2.0]]]))
        tunable.shared[where + "adaption_gate"].fill_(gate)
    seen: list[Any] = []
    tunable.model.model.layers[0].self_attn.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with torch.no_grad():
        tunable.model(input_ids=torch.zeros(1, 1, dtype=torch.long), attention_mask=torch.ones(1, 1))
    torch.testing.assert_close(seen[0][0], torch.tensor([want]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["share", "freeze"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("family", tiny.DECODERS)
def test_what_is_saved_gives_the_same_logits(
    family: str, causal: bool, head: str, bases: dict[tuple[str, bool], str], tmp_path: Path
) -> None:
    from peft import PeftModel

    method = LlamaAdapter(num_virtual_tokens=3)
    fresh = tiny.load(bases[family, causal], causal=causal)
    tunable = method.attach(tiny.load(bases[family, causal], causal=causal), head)
    with torch.no_grad():
        before = fresh(**tiny.texts()).logits
        assert torch.equal(tunable.model(**tiny.texts()).logits, before)
    tiny.shift(tunable.trainable)
    method.save(
        extract_tensors(tunable.shared), tmp_path, base_model=bases[family, causal], head_keys=tunable.head_keys
    )
    with torch.no_grad():
        want = tunable.model(**tiny.texts()).logits
        got = PeftModel.from_pretrained(fresh, str(tmp_path))(**tiny.texts()).logits
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(want, before, atol=1e-4)


def test_only_the_topmost_layers_and_float32(bases: dict[tuple[str, bool], str]) -> None:
    model = tiny.load(bases["llama", False], dtype="bfloat16")
    tunable = LlamaAdapter(num_virtual_tokens=3, num_layers=1).attach(model, "freeze")
    where = "base_model.model.model.layers.1.self_attn."
    assert {key: tuple(value.shape) for key, value in tunable.shared.items()} == {
        where + "adaption_prompt": (1, 3, 32),
        where + "adaption_gate": (1,),
    }
    assert {value.dtype for value in tunable.trainable} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        tunable.model(**tiny.texts()).logits.float().sum().backward()
    assert tunable.shared[where + "adaption_gate"].grad is not None


def test_encoders_are_refused(bases: dict[tuple[str, bool], str]) -> None:
    reason = r"LLaMA-Adapter is not defined for BertFor.*: HF peft knows it for llama, mistral, gpt2 \(choose method="
    with pytest.raises(ConfigError, match=reason):
        LlamaAdapter().attach(tiny.load(bases["bert", False]), "share")


def test_more_layers_than_there_are_and_odd_heads_are_refused(bases: dict[tuple[str, bool], str]) -> None:
    with pytest.raises(ConfigError, match=r"num_layers must be at most 2, .* got 3 \(set method.num_layers\)"):
        LlamaAdapter(num_layers=3).attach(tiny.load(bases["llama", False]), "share")
    wide = LlamaConfig(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2, head_dim=4
    )
    with pytest.raises(ConfigError, match="2 heads of 4 for 4"):
        LlamaAdapter().attach(LlamaForSequenceClassification(wide), "share")


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LlamaAdapter(num_virtual_tokens=0, num_layers=0)
    assert [line.split()[0] for line in caught.value.problems] == ["num_virtual_tokens", "num_layers"]
