"""Scores come from what each layer puts out, and from nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy as maker
from small_models import KINDS, LAYERS, batch_of, model_of, wrapped
from torch import nn

from fedpeft.client.probes import layer_scores
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.core.spectrum import similarity_score
from fedpeft.tasks.models import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("probes") / "model", layers=LAYERS))


class Lookup(nn.Module):
    """A model whose two layers put out what they are given, and its negative squares: features known by hand."""

    class Layer(nn.Module):
        def __init__(self, power: int) -> None:
            super().__init__()
            self.power = power

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return -(x**2) if self.power == 2 else x, None

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=2)
        self.table = nn.Embedding.from_pretrained(torch.tensor(table))
        self.layers = nn.ModuleList([self.Layer(1), self.Layer(2)])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)[0]
        return hidden


def test_scores_of_two_texts_by_hand() -> None:
    """Token 1 is (1, 0) and token 2 (0.6, 0.8); token 0 pads and is (9, 9), which must not count.

    Layer 0: cosine c = 0.6. Layer 1 negates squares: (-1, 0) and (-0.36, -0.64), c = 0.36 / sqrt(0.5392).
    Eigenvalues 1 + c and 1 - c, each plus 1e-5.
    """
    model = Lookup([[9.0, 9.0], [1.0, 0.0], [0.6, 0.8]])
    batch = {"input_ids": torch.tensor([[1, 0], [2, 0]]), "attention_mask": torch.tensor([[1, 0], [1, 0]])}
    expected = [
        sum(math.log(one) + 1 / one for one in (1 + c + 1e-5, 1 - c + 1e-5)) for c in (0.6, 0.36 / math.sqrt(0.5392))
    ]
    np.testing.assert_allclose(layer_scores(model, batch), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_scored_by_its_own_output(kind: str) -> None:
    """Hugging Face's hidden states are the embeddings, then each layer's output, the last one after a final norm.

    BERT has no final norm; where there is one, the last layer's output is what that norm is given.
    """
    model, batch = model_of(kind), batch_of(7, 4, 9, 5)
    given: list[torch.Tensor] = []
    norm = {"bert": None, "gpt2": "transformer.ln_f", "llama": "model.norm"}[kind]
    if norm:
        model.get_submodule(norm).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        states = list(model(**inputs, output_hidden_states=True).hidden_states)
    outputs = states[1:] if norm is None else [*states[1:-1], given[0]]
    expected = [similarity_score((one * batch["attention_mask"][:, :, None]).flatten(1).numpy()) for one in outputs]
    scores = layer_scores(model, batch)
    assert scores.shape == (LAYERS,) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert len(set(scores.tolist())) == LAYERS


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_a_score(kind: str) -> None:
    model = model_of(kind)
    np.testing.assert_allclose(
        layer_scores(model, batch_of(7, 4, 9, 5, padding=6)), layer_scores(model, batch_of(7, 4, 9, 5)), rtol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_models_are_scored(kind: str) -> None:
    """LoRA begins with B = 0, so with the base model's scores; prefixes and prompts change what layers put out."""
    batch = batch_of(7, 4, 9, 5)
    base = layer_scores(model_of(kind), batch)
    np.testing.assert_array_equal(layer_scores(wrapped(kind, "lora"), batch), base)
    for name in ("prefix", "prompt"):
        scores = layer_scores(wrapped(kind, name), batch)
        assert scores.shape == (LAYERS,) and np.isfinite(scores).all() and (scores != base).all()


def test_virtual_tokens_count_and_padding_behind_them_does_not() -> None:
    model = wrapped("bert", "prompt")
    batch = batch_of(7, 4, 9, 5)
    rows: list[torch.Tensor] = []
    model.get_submodule("base_model.bert.encoder.layer.0").register_forward_hook(lambda _, __, out: rows.append(out))
    score = layer_scores(model, batch)[0]
    assert rows[0].shape == (4, 5 + 9, 32)
    mask = torch.cat([torch.ones(4, 5), batch["attention_mask"]], dim=1)
    assert score == pytest.approx(similarity_score((rows[0] * mask[:, :, None]).flatten(1).numpy()), rel=1e-6)
    np.testing.assert_allclose(
        layer_scores(model, batch_of(7, 4, 9, 5, padding=3)), layer_scores(model, batch), rtol=1e-4
    )


def test_scoring_leaves_the_model_as_it_was(folder: str) -> None:
    """Dropout is off while scoring, and a training model trains on."""
    model = load_classifier(folder, num_labels=2, dtype="float32", dropout=0.5, seed=0).train()
    first = layer_scores(model, batch_of(5, 6, 7))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    np.testing.assert_array_equal(layer_scores(model, batch_of(5, 6, 7)), first)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_bfloat16_scores_are_near_float32_ones(folder: str) -> None:
    wide, narrow = (
        load_classifier(folder, num_labels=2, dtype=d, dropout=0.0, seed=0) for d in ("float32", "bfloat16")
    )
    scores = layer_scores(narrow, batch_of(7, 4, 9, 5), dtype="bfloat16")
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, layer_scores(wide, batch_of(7, 4, 9, 5)), rtol=0.02)


def test_layers_that_share_weights_are_refused() -> None:
    import transformers as hf

    config = hf.AlbertConfig(
        vocab_size=64,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with pytest.raises(ConfigError, match="no list of its 4 layers"):
        layer_scores(hf.AlbertForSequenceClassification(config), batch_of(3, 4))


def test_an_empty_text_has_no_score() -> None:
    batch = {"input_ids": torch.tensor([[1, 2], [0, 0]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])}
    with pytest.raises(DataError, match="example 1"):
        layer_scores(Lookup([[9.0, 9.0], [1.0, 0.0], [0.6, 0.8]]), batch)


def test_probes_import_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, fedpeft.client.probes, fedpeft.core.spectrum, fedpeft.core.merging; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
