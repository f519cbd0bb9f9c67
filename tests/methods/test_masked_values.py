"""SLoRA's values: where they are added, what they cost, and that none is lost on saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fedpeft.core.errors import ConfigError
from fedpeft.core.masks import mask_indices, scatter
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.traits import FACTORS, SPARSE
from fedpeft.device_profiles.flops import measure_step_flops
from fedpeft.methods.base import Tunable, extract_tensors, load_tensors
from fedpeft.methods.lora import LoRA
from fedpeft.methods.slora import SLoRA, as_factors

TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: tiny.write(tmp_path_factory.mktemp(name) / "model", name) for name in TARGETS}


def method(family: str, **settings: Any) -> SLoRA:
    return SLoRA(**{"rank": 2, "alpha": 4, "density": 0.05, "target_modules": TARGETS[family], **settings})


def attached(folders: dict[str, str], family: str, dtype: str = "float32", **settings: Any) -> Tunable:
    torch.manual_seed(0)
    return method(family, **settings).attach(tiny.load(folders[family], dtype=dtype), "share")


def sizes(tunable: Tunable) -> dict[str, tuple[int, int]]:
    shapes = {key: tuple(value.shape) for key, value in tunable.shared.items()}
    return {pair.module: (shapes[pair.b][0], shapes[pair.a][1]) for pair in lora_pairs(shapes)}


@pytest.mark.parametrize("family", TARGETS)
def test_values_are_added_to_the_weight(folders: dict[str, str], family: str) -> None:
    """W0 + scatter(v) by numpy, with the mask in (out, in) whatever the module's layout; 5 % of 32 x 96 are 154."""
    tunable = attached(folders, family)
    module, shape = sorted(sizes(tunable).items())[-1]
    indices = mask_indices(0, module, shape, 0.05)
    values = tunable.shared[f"{module}.sparse_values"]
    assert values.shape == (len(indices),) == (max(1, round(0.05 * shape[0] * shape[1])),)
    assert not values.any()
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=len(indices)).astype(np.float32)
    with torch.no_grad():
        values.copy_(torch.from_numpy(drawn))
    layer = tunable.model.get_submodule(module.removeprefix("base_model.model."))
    base = layer.get_base_layer()
    weight = base.weight.detach().numpy().astype(np.float64)
    weight = weight.T if family == "gpt2" else weight
    x = rng.normal(size=(2, 5, 32)).astype(np.float32)
    bias = 0 if base.bias is None else base.bias.detach().numpy()
    wanted = x @ (weight + scatter(drawn, indices, shape)).T + bias
    assert np.allclose(layer(torch.from_numpy(x)).detach().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("family", TARGETS)
def test_gradients_are_those_of_the_weight_at_the_mask(folders: dict[str, str], family: str) -> None:
    tunable = attached(folders, family)
    module, shape = sorted(sizes(tunable).items())[0]
    layer = tunable.model.get_submodule(module.removeprefix("base_model.model."))
    loss = tunable.model(**tiny.texts()).logits.square().sum()
    got = torch.autograd.grad(loss, tunable.shared[f"{module}.sparse_values"])[0].numpy()
    plain = LoRA(rank=2, target_modules=TARGETS[family]).attach(tiny.load(folders[family]), "share")
    weight = plain.model.get_submodule(module.removeprefix("base_model.model.")).get_base_layer().weight
    weight.requires_grad_(True)
    dense = torch.autograd.grad(plain.model(**tiny.texts()).logits.square().sum(), weight)[0].numpy()
    dense = dense.T if family == "gpt2" else dense
    wanted = dense.reshape(-1)[mask_indices(0, module, shape, 0.05)]
    assert np.abs(wanted).max() > 0
    assert np.allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert layer.get_base_layer().weight.grad is None


def test_values_that_were_not_sent_cost_nothing(folders: dict[str, str]) -> None:
    """Not sent, not training and zero: the base runs as it is. Otherwise they take part."""
    tunable = attached(folders, "bert")
    names = [key for key in tunable.shared if key.endswith("sparse_values")]
    layers = [m for m in tunable.model.modules() if type(m).__name__ == "MaskedLinear"]
    for value in tunable.shared.values():
        value.requires_grad_(False)
    tunable.configure(0.0, frozenset(key for key in tunable.shared if key not in names))
    assert [layer.active for layer in layers] == [False] * 4
    tunable.configure(0.0, frozenset(names))
    assert [layer.active for layer in layers] == [True] * 4
    tunable.shared[names[1]].requires_grad_(True)
    tunable.configure(0.0, frozenset())
    assert sum(layer.active for layer in layers) == 1, "values that a client keeps to itself train unsent"
    tunable.shared[names[1]].requires_grad_(False)
    with torch.no_grad():
        tunable.shared[names[0]][0] = 1.0
    tunable.configure(0.0, frozenset())
    assert sum(layer.active for layer in layers) == 1


def test_training_values_costs_the_weights_whole_gradient(folders: dict[str, str]) -> None:
    """Query and value of two layers, 32 x 32: the gradient of a weight is 2 x 32 x 32 FLOPs a token, four of them.

    A product with a factor, 32 x 2, is 128. LoRA's backward needs the gradients of B, of A and of what is between;
    where the input needs one (layer 1), that too. Stage one needs none of these in layer 0, 2 modules x 3 x 128 less,
    and in layer 1 not those of B and A, 2 x 2 x 128 less: 1280 in all.
    """
    from transformers import AutoModelForSequenceClassification

    def cost(how: LoRA, trains: str) -> float:
        def build() -> Any:
            model = AutoModelForSequenceClassification.from_config(tiny.config("bert"), attn_implementation="eager")
            tunable = how.attach(model, "share")
            keys = {key for key in tunable.shared if trains in key}
            for key, value in tunable.shared.items():
                value.requires_grad_(key in keys)
            tunable.configure(0.0, frozenset(keys))
            return tunable.model

        return measure_step_flops(build).per_token

    how = method("bert")
    plain = cost(LoRA(rank=2, target_modules=TARGETS["bert"]), "lora_")
    assert cost(how, "lora_") == plain
    assert cost(how, "sparse_values") == plain + 4 * 2 * 32 * 32 - 1280


def test_a_bfloat16_base_is_summed_in_float32(folders: dict[str, str]) -> None:
    """1 + 2^-10 is no bfloat16 (8 bits), but it is a float32."""
    tunable = attached(folders, "bert", dtype="bfloat16")
    layer = next(m for m in tunable.model.modules() if type(m).__name__ == "MaskedLinear")
    with torch.no_grad():
        layer.base_layer.weight.fill_(1.0)
        layer.sparse_values.fill_(2.0**-10)
    total = layer.weight_sum()
    assert total.dtype == torch.float32
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert total.flatten()[layer.positions].tolist() == [1 + 2.0**-10] * len(layer.positions)
    assert int((total != 1).sum()) == len(layer.positions)


@pytest.mark.parametrize("family", TARGETS)
def test_saved_values_are_not_lost(folders: dict[str, str], family: str, tmp_path: Path, caplog: Any) -> None:
    """A run that ends in the first stage: plain peft computes what the model did, and the log says why it is large."""
    from peft import PeftModel

    tunable = attached(folders, family)
    tiny.shift(tunable.shared.values())
    wanted = tunable.model(**tiny.texts()).logits
    tensors = extract_tensors(tunable.shared)
    with caplog.at_level("WARNING"):
        method(family).save(tensors, tmp_path, base_model=folders[family], head_keys=tunable.head_keys)
    assert "still holds sparse values" in caplog.text
    loaded = PeftModel.from_pretrained(tiny.load(folders[family]), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**tiny.texts()).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("without", [True, False], ids=["values left out", "values of zero"])
def test_without_values_the_adapter_is_loras(folders: dict[str, str], without: bool, tmp_path: Path) -> None:
    tunable = attached(folders, "bert")
    tensors = extract_tensors(tunable.shared)
    lora = {key: value for key, value in tensors.items() if not key.endswith("sparse_values")}
    for how, given, name in ((method("bert"), lora if without else tensors, "ours"), (None, lora, "plain")):
        saver = how or LoRA(rank=2, alpha=4, target_modules=TARGETS["bert"])
        saver.save(given, tmp_path / name, base_model=folders["bert"], head_keys=tunable.head_keys)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_factors_of_a_sparse_matrix_only_pick() -> None:
    """Two of four columns are not zero: b holds them, a says which; exactly."""
    dense = np.zeros((5, 4))
    dense[:, 1], dense[2, 3] = [1, 2, 3, 4, 5], 0.1
    change = as_factors(dense)
    assert change.rank == 2
    assert np.array_equal(change.b @ change.a, dense)


def test_a_quantised_base_is_refused() -> None:
    class Linear4bit(torch.nn.Linear):
        """Named as bitsandbytes' layer is."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = Linear4bit(4, 4)

    with pytest.raises(ConfigError, match="SLoRA adds to the base's weights, and query is stored in 8 or 4 bits"):
        SLoRA(rank=2, target_modules=["query"]).attach(Model(), "freeze")


def test_settings_out_of_range_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        SLoRA(rank=0, density=1.5, mask_seed=True)
    assert caught.value.problems == [
        "rank must be in 1..1024, got 0 (set method.rank)",
        "density must be in (0, 1], got 1.5 (set method.density)",
        "mask_seed must be a whole number, got True (set method.mask_seed)",
    ]
    assert SLoRA(density=1.0).traits == {FACTORS, SPARSE}


def test_loading_values_changes_the_output(folders: dict[str, str]) -> None:
    tunable = attached(folders, "llama")
    before = tunable.model(**tiny.texts()).logits.detach()
    tensors = extract_tensors(tunable.shared)
    load_tensors(tunable.shared, {k: v + np.float32(k.endswith("sparse_values")) for k, v in tensors.items()})
    assert not torch.allclose(tunable.model(**tiny.texts()).logits, before, atol=1e-3)
