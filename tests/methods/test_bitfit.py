"""BitFit: which biases train, and what the biased module computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft.methods.base import extract_tensors, load_tensors
from fedpeft.methods.bitfit import BitFit
from fedpeft.tasks.models import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("bitfit") / "model"))


def classifier(folder: str, dtype: str = "float32") -> nn.Module:
    """Return a classifier whose biases are not the zeros that new models have."""
    model = load_classifier(folder, num_labels=2, dtype=dtype, dropout=0.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if name.endswith(".bias"):
            value.data += torch.randn(value.shape, generator=generator).to(value.dtype)
    return model


def outputs(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(4, 24).view(2, 10)).logits.clone()


def test_every_bias_of_the_base_trains_and_no_other(folder: str) -> None:
    """The model's own names ending in .bias, less the head's; each layer has 8, with embeddings and pooler 18."""
    model = classifier(folder)
    biases = {
        n: p.detach().clone() for n, p in model.named_parameters() if n.endswith(".bias") and "classifier" not in n
    }
    tunable = BitFit().attach(model, "freeze")
    names = {f"base_model.model.{name.removesuffix('bias')}bitfit_bias" for name in biases}
    assert set(tunable.shared) == names
    assert len(names) == 18
    for name, value in biases.items():
        live = tunable.shared[f"base_model.model.{name.removesuffix('bias')}bitfit_bias"]
        torch.testing.assert_close(live.detach(), value, rtol=0, atol=0)


def test_it_equals_a_model_with_those_biases(folder: str) -> None:
    """The same numbers written straight into a plain model's biases give the same logits, bit for bit."""
    tunable = BitFit().attach(classifier(folder), "freeze")
    rng = np.random.default_rng(0)
    values = {k: v + rng.normal(size=v.shape).astype(np.float32) for k, v in extract_tensors(tunable.shared).items()}
    load_tensors(tunable.shared, values)
    plain = classifier(folder)
    own = {
        key.removeprefix("base_model.model.").replace("bitfit_bias", "bias"): torch.from_numpy(value)
        for key, value in values.items()
    }
    plain.load_state_dict(own, strict=False)
    assert torch.equal(outputs(tunable.model), outputs(plain))


def test_a_saved_adapter_merges_and_comes_out_again(folder: str, tmp_path: Path) -> None:
    from peft import PeftModel

    import fedpeft.methods.peft_tuners  # noqa: F401 - makes BitFit known to HF peft

    tunable = BitFit().attach(classifier(folder), "share")
    load_tensors(tunable.shared, {k: v + 0.5 for k, v in extract_tensors(tunable.shared).items()})
    BitFit().save(extract_tensors(tunable.shared), tmp_path, base_model=folder, head_keys=tunable.head_keys)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["modules_to_save"]) == ("BITFIT", ["classifier"])
    loaded = PeftModel.from_pretrained(classifier(folder), str(tmp_path))
    trained = outputs(tunable.model)
    assert torch.equal(outputs(loaded), trained)
    loaded.merge_adapter()
    assert torch.equal(outputs(loaded), trained)
    loaded.unmerge_adapter()
    assert torch.equal(outputs(loaded), trained)
    with loaded.disable_adapter():
        assert not torch.equal(outputs(loaded), trained)
    whole = loaded.merge_and_unload()
    assert torch.equal(outputs(whole), trained)
    assert not any("bitfit" in name for name, _ in whole.named_parameters())


def test_biases_are_float32_beside_a_bfloat16_base_with_and_without_autocast(folder: str) -> None:
    """A change too small for bfloat16 stays in the parameter; without autocast the module still runs."""
    tunable = BitFit().attach(classifier(folder, "bfloat16"), "freeze")
    assert {value.dtype for value in tunable.trainable} == {torch.float32}
    assert {p.dtype for p in tunable.model.bert.parameters() if not p.requires_grad} == {torch.bfloat16}
    layer = tunable.model.bert.encoder.layer[0]
    x = torch.ones(2, 3, 32, dtype=torch.bfloat16)
    assert layer.output.LayerNorm(x).dtype == layer.attention.self.query(x).dtype == torch.bfloat16
