"""Prefix tuning: attention by hand, against HF peft's own, on five architectures."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, T5Config
from transformers import DistilBertForSequenceClassification as DistilBert
from transformers import T5ForSequenceClassification as T5

import fedpeft.methods.peft_tuners  # noqa: F401 - makes our own kind known to peft
from fedpeft.core.errors import ConfigError
from fedpeft.methods.prefix import PrefixTuning

ALL = (*tiny.ENCODERS, *tiny.DECODERS)
KEY = "base_model.model.prefix.layers.{}.key_value"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], str]:
    """Folders by family and by whether it is a causal language model."""
    return tiny.write_all(tmp_path_factory.mktemp("prefix"))


def one_token(model: Any, key: list[float], value: list[float]) -> Any:
    tunable = PrefixTuning(num_virtual_tokens=1).attach(model, "freeze")
    with torch.no_grad():
        tunable.shared[KEY.format(0)].copy_(torch.tensor([key + value]))
    return tunable.model


def test_bert_by_hand() -> None:
    """Width 2, one head, queries, keys and values are their inputs; the word (1, -1) is its own layer norm.

    Its score with itself is (1 + 1) / sqrt 2 = sqrt 2. The prefix's key (c, -c) scores sqrt 2 c, and c = 1 + ln 3 /
    sqrt 2 makes that ln 3 more: weights 3/4 and 1/4. With the prefix's value (5, 5) the output is
    1/4 (1, -1) + 3/4 (5, 5) = (4, 3.5).
    """
    shape = {"vocab_size": 2, "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1}
    model = BertForSequenceClassification(BertConfig(**shape, num_attention_heads=1, layer_norm_eps=1e-12)).eval()
    seen: list[Any] = []
    with torch.no_grad():
        for table in (model.bert.embeddings.position_embeddings, model.bert.embeddings.token_type_embeddings):
            table.weight.zero_()
        model.bert.embeddings.word_embeddings.weight.copy_(torch.tensor([[1.0, -1.0]] * 2))
        attention = model.bert.encoder.layer[0].attention.self
        for module in (attention.query, attention.key, attention.value):
            module.weight.copy_(torch.eye(2))
    attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    c = 1 + math.log(3) / math.sqrt(2)
    one_token(model, [c, -c], [5, 5])(input_ids=torch.ones(1, 1, dtype=torch.long), attention_mask=torch.ones(1, 1))
    torch.testing.assert_close(seen[0][0], torch.tensor([[4, 3.5]]), rtol=0, atol=1e-5)


def test_distilbert_by_hand() -> None:
    """As for BERT, on the attention alone: x = (1, 0), key (1 + sqrt 2 ln 3, 0), value (0, 4): 1/4 x + 3/4 v.

    The score of x with itself is 1 / sqrt 2 and the prefix's is ln 3 more: (0.25, 3).
    """
    shape = {"vocab_size": 2, "dim": 2, "hidden_dim": 2, "n_layers": 1, "n_heads": 1}
    model = DistilBert(DistilBertConfig(**shape, attention_dropout=0.0)).eval()
    attention = model.distilbert.transformer.layer[0].attention
    with torch.no_grad():
        for module in (attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin):
            module.weight.copy_(torch.eye(2))
            module.bias.zero_()
    one_token(model, [1 + math.sqrt(2) * math.log(3), 0], [0, 4])
    heads = [model.prefix.heads(layer, 1, torch.float32) for layer in model.prefix.values()]
    got, _ = attention(torch.tensor([[[1.0, 0.0]]]), prefix_heads=heads)
    torch.testing.assert_close(got[0], torch.tensor([[0.25, 3]]), rtol=0, atol=1e-5)


def test_grouped_query_attention_by_hand() -> None:
    """Two query heads share one key-value head; the prefix's key is 0, so it scores 0, and its value (8, 0).

    The word's key and value are (1, 1). Query head 1 is zero: weights 1/2, 1/2 give (4.5, 0.5). Query head 2 is
    ln 3 / sqrt 2 (1, 1), turned like the word's key by the same angle: score ln 3, weights 3/4, 1/4 give (2.75, 0.75).
    """
    model = tiny.by_hand(heads=2)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[2:] = torch.eye(2) * math.log(3) / math.sqrt(2)
    got = tiny.attended(one_token(model, [0, 0], [8, 0]))
    torch.testing.assert_close(got, torch.tensor([[4.5, 0.5, 2.75, 0.75]]), rtol=0, atol=1e-5)


def test_one_leaf_a_layer(bases: dict[tuple[str, bool], str]) -> None:
    """3 tokens x (key + value): 2 x 32 for BERT; Llama's 2 of 4 heads of 8: 2 x 16."""
    for family, width in (("bert", 64), ("distilbert", 64), ("gpt2", 64), ("llama", 32)):
        tunable = PrefixTuning(num_virtual_tokens=3).attach(tiny.load(bases[family, False]), "freeze")
        assert {key: value.shape for key, value in tunable.shared.items()} == {
            KEY.format(layer): (3, width) for layer in (0, 1)
        }
        assert all(value.is_leaf and value.requires_grad for value in tunable.shared.values())


@pytest.mark.parametrize("reparameterize", [False, True])
@pytest.mark.parametrize(("family", "causal"), [*((f, False) for f in ALL), ("gpt2", True), ("llama", True)])
@pytest.mark.parametrize("head", ["share", "freeze"])
def test_what_is_saved_gives_the_same_logits(
    family: str, causal: bool, head: str, reparameterize: bool, bases: dict[tuple[str, bool], str], tmp_path: Path
) -> None:
    """HF peft's own kind puts a prefix in by other code, so that equality proves ours; DistilBERT's loads as ours."""
    from peft import PeftModel

    method = PrefixTuning(num_virtual_tokens=3, init_std=0.5, reparameterize=reparameterize, hidden_size=8)
    tunable = method.attach(tiny.load(bases[family, causal], causal=causal), head)
    kind = tiny.save(method, tunable, tmp_path, bases[family, causal])
    ours = family == "distilbert" or (head == "freeze" and not causal)
    assert kind == ("VIRTUAL_TOKENS" if ours else "PREFIX_TUNING")
    fresh = tiny.load(bases[family, causal], causal=causal)
    with torch.no_grad():
        before, want = fresh(**tiny.texts()).logits, tunable.model(**tiny.texts()).logits
        loaded = PeftModel.from_pretrained(fresh, str(tmp_path))
        torch.testing.assert_close(loaded(**tiny.texts()).logits, want, rtol=1e-6, atol=1e-6)
        if ours:
            loaded.base_model.disable_adapter_layers()
            assert head == "share" or torch.equal(loaded(**tiny.texts()).logits, before)
    assert not torch.allclose(before, want, atol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_padding_changes_nothing(family: str, bases: dict[tuple[str, bool], str]) -> None:
    tunable = PrefixTuning(num_virtual_tokens=3, init_std=1.0).attach(tiny.load(bases[family, False]), "share")
    tiny.assert_padding_changes_nothing(tunable.model)


@pytest.mark.parametrize("family", tiny.DECODERS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_reads_the_prefix_once(family: str, use_cache: bool, bases: dict[tuple[str, bool], str]) -> None:
    tunable = PrefixTuning(num_virtual_tokens=3, init_std=1.0).attach(
        tiny.load(bases[family, True], causal=True), "share"
    )
    tiny.assert_generation_is_reading(tunable.model, use_cache=use_cache)


@pytest.mark.parametrize("family", ALL)
def test_a_copied_model_has_a_prefix_of_its_own(family: str, bases: dict[tuple[str, bool], str]) -> None:
    tunable = PrefixTuning(num_virtual_tokens=2).attach(tiny.load(bases[family, False]), "freeze")
    twin = copy.deepcopy(tunable.model)
    with torch.no_grad():
        before = twin(**tiny.texts()).logits
        tiny.shift(tunable.trainable, 3.0)
        assert torch.equal(twin(**tiny.texts()).logits, before)
        assert not torch.allclose(tunable.model(**tiny.texts()).logits, before, atol=1e-4)


def test_traits_follow_the_form() -> None:
    assert PrefixTuning().traits == {"layers"}
    assert PrefixTuning(reparameterize=True).traits == set()
    assert PrefixTuning(num_virtual_tokens=9).virtual_tokens == 9


def test_an_encoder_with_a_decoder_is_refused() -> None:
    model = T5(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, decoder_start_token_id=0))
    with pytest.raises(ConfigError, match=r"prefix tuning is not defined for T5.* \(choose method="):
        PrefixTuning().attach(model, "share")


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PrefixTuning(num_virtual_tokens=0, init_std=-1, reparameterize="no", hidden_size=True)  # type: ignore[arg-type]
    names = [line.split()[0] for line in caught.value.problems]
    assert names == ["num_virtual_tokens", "init_std", "reparameterize", "hidden_size"]
    assert "num_virtual_tokens must be in 1..1000, got 0 (set method.num_virtual_tokens)" in caught.value.problems
    assert PrefixTuning(num_virtual_tokens=1000).num_virtual_tokens == 1000


def test_reparameterised_prefix_by_hand(bases: dict[tuple[str, bool], str]) -> None:
    """W2 tanh(W1 E + b1) + b2 in numpy, cut into layers of 2 x 32."""
    method = PrefixTuning(num_virtual_tokens=3, reparameterize=True, hidden_size=5)
    tunable = method.attach(tiny.load(bases["bert", False]), "freeze")
    tiny.shift(tunable.trainable)
    t = {key.removeprefix("base_model.model.prefix."): v.detach().numpy() for key, v in tunable.shared.items()}
    hidden = np.tanh(t["embedding"] @ t["transform.0.weight"].T + t["transform.0.bias"])
    flat = hidden @ t["transform.2.weight"].T + t["transform.2.bias"]
    for layer, got in enumerate(tunable.model.prefix.values()):
        np.testing.assert_allclose(got.detach().numpy(), flat[:, 64 * layer : 64 * (layer + 1)], atol=1e-5)
