"""Loading base models: seeded heads, dtypes by CPU flags, hashes, and one-line refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy as maker
from torch import nn

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.tasks import models
from fedpeft.tasks.models import hash_model, load_classifier, load_tokenizer, max_tokens, resolve_dtype, set_dropout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("models") / "model"))


def load(
    folder: str, *, num_labels: int = 3, dtype: str = "float32", dropout: float | None = None, seed: int = 0
) -> nn.Module:
    return load_classifier(folder, num_labels=num_labels, dtype=dtype, dropout=dropout, seed=seed)


def test_the_new_head_is_seeded_and_the_base_is_not(folder: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = load(folder), load(folder), load(folder, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(one.get_parameter(query), other.get_parameter(query))
    assert one.classifier.weight.shape == (3, 32)


def test_hash_sees_every_weight(folder: str) -> None:
    model = load(folder)
    first = hash_model(model)
    assert len(first) == 64
    assert hash_model(load(folder)) == first
    assert hash_model(load(folder, num_labels=2)) != first
    assert hash_model(load(folder, dtype="bfloat16")) != first
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.bias[7] += 1e-6
    assert hash_model(model) != first


def test_hash_leaves_out_a_head_that_was_drawn_here(folder: str, tmp_path: Path) -> None:
    """An ARM64 device draws the same head but for its last bits; a head from the checkpoint is the base's."""
    model = load(folder)
    first = hash_model(model)
    with torch.no_grad():
        model.classifier.weight += 1e-8
    assert hash_model(model) == first
    model.save_pretrained(tmp_path)
    stored = load(str(tmp_path))
    first = hash_model(stored)
    with torch.no_grad():
        stored.classifier.weight[0, 0] += 1e-3
    assert hash_model(stored) != first


@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_dropout_everywhere_or_as_it_was(folder: str, dropout: float | None, expected: float) -> None:
    model = load(folder, dropout=dropout)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {expected}
    own = [m.dropout_prob for m in model.modules() if isinstance(getattr(m, "dropout_prob", None), float)]
    assert set(own) <= {expected}


def test_dropout_that_is_a_number_in_a_module_is_set_too() -> None:
    """Attention keeps its probability as a plain number, under one of two names."""
    holder = nn.Module()
    holder.attention_dropout, holder.dropout_prob, holder.epsilon = 0.1, 0.2, 0.3
    set_dropout(nn.ModuleList([holder]), 0.5)
    assert (holder.attention_dropout, holder.dropout_prob, holder.epsilon) == (0.5, 0.5, 0.3)


def test_dropout_zero_makes_training_mode_deterministic(folder: str) -> None:
    model = load(folder, dropout=0.0)
    model.train()
    inputs = {"input_ids": torch.arange(4, 12)[None]}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512f avx512_bf16", "bfloat16"),
        ("flags : amx_bf16", "bfloat16"),
        ("Features : fp asimd bf16", "bfloat16"),
        ("flags : avx512f avx2", "float32"),
        ("model name : avx512_bf16", "float32"),
        ("", "float32"),
    ],
)
def test_auto_follows_cpu_flags(flags: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: flags + "\n")
    assert resolve_dtype("auto") == expected
    assert resolve_dtype("float32") == "float32"
    assert resolve_dtype("bfloat16") == "bfloat16"


def test_other_systems_have_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.platform, "system", lambda: "Darwin")
    assert resolve_dtype("auto") == "float32"


def test_refusals_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dtype must be one of auto, float32, bfloat16, got 'float16' \(set model.dtype\)"
    ):
        resolve_dtype("float16")
    for refused in (lambda: load(str(tmp_path)), lambda: load_tokenizer(str(tmp_path))):
        with pytest.raises(DataError, match=r"set model\.path") as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_positions_are_those_a_text_may_use(folder: str) -> None:
    """BERT: its table of 64; RoBERTa: 20 less the padding index 1 and the unused 0; Llama computes them."""
    from transformers import AutoModel, LlamaConfig, RobertaConfig

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    roberta = AutoModel.from_config(RobertaConfig(**small, vocab_size=9, max_position_embeddings=20, pad_token_id=1))
    llama = AutoModel.from_config(LlamaConfig(**small, vocab_size=9, max_position_embeddings=20))
    assert [max_tokens(model) for model in (load(folder), roberta, llama)] == [64, 18, None]
