"""Full fine-tuning: what trains, and the whole model that is saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.methods.base import extract_tensors, load_tensors
from fedpeft.methods.full import Full
from fedpeft.tasks.models import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("full") / "model"))


def test_everything_trains_in_float32(folder: str) -> None:
    model = load_classifier(folder, num_labels=3, dtype="bfloat16", dropout=0.0, seed=0)
    names = {f"base_model.model.{name}" for name, _ in model.named_parameters()}
    tunable = Full().attach(model, "share")
    assert set(tunable.shared) == names
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_saved_folder_says_what_model_it_is(folder: str, tmp_path: Path) -> None:
    """Three labels, where the base model's config says two."""
    tunable = Full().attach(load_classifier(folder, num_labels=3, dtype="bfloat16", dropout=0.0, seed=0), "share")
    Full().save(extract_tensors(tunable.shared), tmp_path, base_model=folder, head_keys=tunable.head_keys)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert (len(config["id2label"]), config["dtype"], config["model_type"]) == (3, "float32", "bert")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def language_model(folder: Path) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_language_models_tied_embedding_travels_once_and_loads(tmp_path: Path) -> None:
    """GPT-2's output embedding is its input embedding: one name, and moving it moves both."""
    from transformers import AutoModelForCausalLM

    tunable = Full().attach(language_model(tmp_path / "base"), "share")
    assert not tunable.head_keys
    assert "base_model.model.transformer.wte.weight" in tunable.shared
    assert "base_model.model.lm_head.weight" not in tunable.shared
    rng = np.random.default_rng(0)
    load_tensors(tunable.shared, {k: rng.normal(size=v.shape).astype(np.float32) for k, v in tunable.shared.items()})
    base = str(tmp_path / "base")
    Full().save(extract_tensors(tunable.shared), tmp_path / "new", base_model=base, head_keys=tunable.head_keys)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    ids = torch.arange(10).view(2, 5)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(input_ids=ids).logits, tunable.model(input_ids=ids).logits, rtol=0, atol=0)


def test_weights_stored_as_integers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ConfigError, match=r"needs a base model in float32 or bfloat16, got weights stored as torch\.int8"
    ):
        Full().attach(model, "share")
