"""HF peft's methods by pass-through: which there are, what they refuse, and IA3's and LayerNorm tuning's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError
from fedpeft.methods.base import extract_tensors, load_tensors
from fedpeft.methods.tuner import PeftTuner, injectable
from fedpeft.tasks.models import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("tuner") / "model"))


def classifier(folder: str) -> nn.Module:
    return load_classifier(folder, num_labels=2, dtype="float32", dropout=0.0, seed=0)


def outputs(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(4, 24).view(2, 10)).logits.clone()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LOKR", {"r": 2}),
        ("HRA", {"r": 4}),
        ("OFT", {"oft_block_size": 8}),
        ("FOURIERFT", {"n_frequency": 20}),
        ("RANDLORA", {"r": 4}),
        ("BOFT", {"boft_block_size": 4}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_others_of_hf_peft_run_and_load(kind: str, options: dict[str, Any], folder: str, tmp_path: Path) -> None:
    """Values that were moved give, on a fresh base, the outputs of the model that they were taken from."""
    from peft import PeftModel

    method = PeftTuner(peft_type=kind, options=options, target_modules=["query"])
    tunable = method.attach(classifier(folder), "share")
    before = outputs(tunable.model)
    rng = np.random.default_rng(0)
    load_tensors(
        tunable.shared, {k: v + rng.normal(size=v.shape) / 10 for k, v in extract_tensors(tunable.shared).items()}
    )
    method.save(extract_tensors(tunable.shared), tmp_path, base_model=folder, head_keys=tunable.head_keys)
    assert not torch.allclose(outputs(tunable.model), before, atol=1e-4)
    loaded = PeftModel.from_pretrained(classifier(folder), str(tmp_path))
    torch.testing.assert_close(outputs(loaded), outputs(tunable.model), rtol=1e-6, atol=1e-6)


def test_options_reach_hf_peft_from_the_command_line(folder: str, tmp_path: Path) -> None:
    overrides = ["method=peft", "method.peft_type=LOKR", "+method.options.r=3", "+method.options.alpha=5"]
    method: PeftTuner = cfg.build(cfg.compose(overrides)["method"])
    tunable = method.attach(classifier(folder), "freeze")
    method.save(extract_tensors(tunable.shared), tmp_path, base_model=folder, head_keys=tunable.head_keys)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {key: saved[key] for key in ("peft_type", "r", "alpha", "target_modules")} == {
        "peft_type": "LOKR", "r": 3, "alpha": 5, "target_modules": ["query", "value"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peft_type": "LOHAA"}, "HF peft can inject no 'LOHAA': did you mean LOHA"),
        ({"peft_type": "PREFIX_TUNING"}, "HF peft can inject no 'PREFIX_TUNING': "),
        ({"peft_type": "VERA"}, "HF peft can inject no 'VERA': "),
        ({"peft_type": "zzzzzz"}, "HF peft can inject no 'zzzzzz': choose one of ADALORA, "),
        ({"peft_type": 3}, "HF peft can inject no 3: "),
        (
            {"peft_type": "LOHA", "options": {"rank_dropouts": 1}},
            "LOHA has no option rank_dropouts: did you mean rank_dropout",
        ),
        ({"peft_type": "LOHA", "options": {"zzz": 1}}, "LOHA has no option zzz: it has alpha, "),
        ({"peft_type": "LOHA", "options": {"modules_to_save": []}}, "method.options must not hold modules_to_save: "),
        ({"peft_type": "LOHA", "options": 3}, "options must be a mapping of names to values, got 3"),
        (
            {"peft_type": "LOHA", "target_modules": "query"},
            "target_modules must list names or be all-linear, got 'query'",
        ),
        ({"peft_type": "ADALORA"}, "HF peft refuses method.options of ADALORA: "),
    ],
)
def test_what_hf_peft_would_not_take_is_refused_in_one_line(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PeftTuner(**settings)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)
    assert "\n" not in caught.value.problems[0]


def test_a_value_that_only_the_model_can_refuse_is_refused_on_attaching(folder: str) -> None:
    method = PeftTuner(peft_type="LOHA", options={"r": 0})
    with pytest.raises(ConfigError, match="HF peft cannot attach LOHA to BertForSequenceClassification: ") as caught:
        method.attach(classifier(folder), "share")
    assert len(caught.value.problems) == 1


def test_adapters_with_fixed_parts_of_their_own_are_refused(folder: str) -> None:
    """DeLoRA keeps the norms of the base's columns beside its factors; they are neither trained nor the base's."""
    with pytest.raises(ConfigError, match="DELORA is not for federated training: it keeps delora_w_norm fixed"):
        PeftTuner(peft_type="DELORA").attach(classifier(folder), "share")


def test_only_what_can_be_injected_is_offered() -> None:
    names = injectable()
    assert {"LORA", "IA3", "LN_TUNING", "LOHA", "LOKR", "OFT"} <= set(names)
    assert not {"PREFIX_TUNING", "P_TUNING", "VERA", "XLORA", "TRAINABLE_TOKENS"} & set(names)


def test_ia3_by_hand(folder: str) -> None:
    """Key and value outputs are multiplied by l (32,); the feed-forward output's input by l (64,): (W x + b) * l and
    W (l * x) + b.
    """
    tunable = PeftTuner(peft_type="IA3").attach(classifier(folder), "freeze")
    layer = "base_model.model.bert.encoder.layer.0."
    shapes = {key: tuple(value.shape) for key, value in tunable.shared.items() if key.startswith(layer)}
    assert shapes == {
        f"{layer}attention.self.key.ia3_l": (32, 1),
        f"{layer}attention.self.value.ia3_l": (32, 1),
        f"{layer}attention.output.dense.ia3_l": (1, 32),
        f"{layer}output.dense.ia3_l": (1, 64),
    }
    assert all(bool((value == 1).all()) for value in tunable.shared.values())
    rng = np.random.default_rng(0)
    load_tensors(tunable.shared, {k: rng.normal(size=v.shape).astype(np.float32) for k, v in tunable.shared.items()})
    block = tunable.model.bert.encoder.layer[0]
    x, y = (torch.from_numpy(rng.normal(size=(3, size)).astype(np.float32)) for size in (32, 64))
    key, out = block.attention.self.key, block.output.dense
    scale = {name: tunable.shared[layer + name].detach().flatten() for name in ("attention.self.key.ia3_l",)}
    inner = tunable.shared[layer + "output.dense.ia3_l"].detach().flatten()
    expected_key = key.base_layer(x) * scale["attention.self.key.ia3_l"]
    expected_out = out.base_layer(y * inner)
    torch.testing.assert_close(key(x), expected_key, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out(y), expected_out, rtol=1e-5, atol=1e-6)


def test_layernorm_tuning_takes_every_normalisation_where_hf_peft_has_no_choice(folder: str) -> None:
    """Embeddings and two a layer, each a weight and a bias: (1 + 2 * 2) * 2 = 10 tensors of 32."""
    tunable = PeftTuner(peft_type="LN_TUNING").attach(classifier(folder), "freeze")
    assert len(tunable.shared) == 10
    assert {tuple(value.shape) for value in tunable.shared.values()} == {(32,)}
