"""Bottleneck adapters: their sum, where they sit, what is saved, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.core.traits import LAYERS
from fedpeft.device_profiles.flops import measure_step_flops
from fedpeft.methods.base import extract_tensors, load_tensors
from fedpeft.methods.bottleneck import Adapter
from fedpeft.methods.compacter import Compacter
from fedpeft.methods.placement import SUBLAYERS, place, target_pattern
from fedpeft.methods.targets import linear_modules

LAYERS_OF_TOY = 2
METHODS = {
    "houlsby": Adapter(bottleneck=4),
    "pfeiffer": Adapter(placement="pfeiffer", bottleneck=4, activation="relu"),
    "compacter": Compacter(bottleneck=8, phm_dim=4, phm_rank=2),
}


def toy_config(family: str) -> Any:
    """Return the config of a model with two layers and hidden size 32."""
    from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig

    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "pad_token_id": 0, "num_labels": 3,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: BertConfig(**shape, max_position_embeddings=64),
        "llama": lambda: LlamaConfig(**shape, num_key_value_heads=2),
        "gpt2": lambda: GPT2Config(
            vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, pad_token_id=0, num_labels=3
        ),
        "distilbert": lambda: DistilBertConfig(
            vocab_size=64, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=64, num_labels=3
        ),
    }
    return makers[family]()


def toy_model(family: str, *, causal: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the same random model at every call."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.from_config(toy_config(family)).to(dtype).eval()


def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(1, 21).view(4, 5)
    with torch.inference_mode():
        return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def stir(tunable: Any) -> None:
    """Give every travelling tensor values of its own, so that nothing is zero."""
    rng = np.random.default_rng(0)
    load_tensors(
        tunable.shared,
        {k: (rng.normal(size=v.shape) / 4).astype(np.float32) for k, v in tunable.shared.items()},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], str]:
    def write(family: str) -> str:
        toy_config(family).save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return write


def test_the_sum_by_hand() -> None:
    """d = 2, k = 1, relu, base = identity, W_down = (3 -1), b_down = 1/2, W_up = (2 -1)', b_up = (0 1).

    h = (1 2): 3 - 2 + 1/2 = 3/2, up (3 -3/2) + (0 1) = (3 -1/2), plus h: (4 3/2).
    h = (0 2): -2 + 1/2 is below zero, so that b_up alone is added: (0 3).
    """
    from fedpeft.methods.peft_tuners import BottleneckConfig, BottleneckLayer

    base = nn.Linear(2, 2)
    layer = BottleneckLayer(base)
    layer.update_layer("default", BottleneckConfig(bottleneck_size=1, activation="relu"))
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        base.bias.zero_()
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        assert not (up.weight.any() or up.bias.any() or down.bias.any())
        down.weight.copy_(torch.tensor([[3.0, -1.0]]))
        down.bias.fill_(0.5)
        up.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        up.bias.copy_(torch.tensor([0.0, 1.0]))
    got = layer(torch.tensor([[1.0, 2.0], [0.0, 2.0]])).tolist()
    assert got == [[4.0, 1.5], [0.0, 3.0]]


@pytest.mark.parametrize(
    ("name", "value"), [("gelu", 0.8411920), ("relu", 1.0), ("silu", 0.7310586), ("tanh", 0.7615942)]
)
def test_activations_at_one(name: str, value: float) -> None:
    """gelu: (1 + erf(1/sqrt 2)) / 2 = .84134 exactly, silu: 1 / (1 + e^-1), tanh: (e^2 - 1) / (e^2 + 1)."""
    from fedpeft.methods.peft_tuners import BottleneckConfig, BottleneckLayer

    layer = BottleneckLayer(nn.Linear(1, 1))
    layer.update_layer("default", BottleneckConfig(bottleneck_size=1, activation=name))
    assert layer.activations["default"](torch.tensor(1.0)).item() == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize(("placement", "per_layer"), [("houlsby", 2), ("pfeiffer", 1)])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "distilbert"])
def test_parameters_by_formula(family: str, placement: str, per_layer: int) -> None:
    """An adapter has 2 k d + k + d parameters; layers x 2 of them (Houlsby) or x 1 (Pfeiffer); k = 4, d = 32: 292."""
    tunable = Adapter(placement=placement, bottleneck=4).attach(toy_model(family), "freeze")
    assert sum(v.numel() for v in tunable.shared.values()) == LAYERS_OF_TOY * per_layer * 292
    assert tunable.rank is None


def test_names_carry_the_layers_number() -> None:
    """Two layers, down and up, weight and bias; Pfeiffer's ``output.dense`` is not the attention's."""
    method = Adapter(placement="pfeiffer", bottleneck=4)
    shared = method.attach(toy_model("bert"), "freeze").shared
    assert {name: tuple(v.shape) for name, v in shared.items()} == {
        f"base_model.model.bert.encoder.layer.{i}.output.dense.bottleneck_{side}": shape
        for i in (0, 1)
        for side, shape in (("down.weight", (4, 32)), ("down.bias", (4,)), ("up.weight", (32, 4)), ("up.bias", (32,)))
    }
    assert LAYERS in method.traits
    shared = Adapter(bottleneck=4).attach(toy_model("gpt2"), "freeze").shared
    assert {name.rsplit(".", 2)[0] for name in shared} == {
        f"base_model.model.transformer.h.{i}.{part}.c_proj" for i in (0, 1) for part in ("attn", "mlp")
    }


@pytest.mark.parametrize("model_type", sorted(SUBLAYERS))
def test_the_table_finds_every_layers_ends(model_type: str) -> None:
    """On models of two layers without weights: two modules a layer, as wide as the residual stream."""
    from transformers import CONFIG_MAPPING, AutoModel

    from fedpeft.methods.peft_tuners import BottleneckConfig

    names = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 64}
    extra: dict[str, Any] = {
        "gpt_neo": {"attention_types": [[["global"], 2]]},
        "opt": {"word_embed_proj_dim": 64, "ffn_dim": 128},
        **{name: {"pad_token_id": 0} for name in ("phi3", "modernbert", "smollm3")},
    }.get(model_type, {})
    config = CONFIG_MAPPING[model_type](**names, **extra)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    for placement, per_layer in (("houlsby", 2), ("pfeiffer", 1)):
        sizes = place(BottleneckConfig(placement=placement, bottleneck_size=4), model, None)
        assert len(sizes) == 2 * per_layer, (target_pattern(model_type, placement), list(linear_modules(model)))
        assert set(sizes.values()) == {64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("name", list(METHODS))
def test_saved_and_loaded_by_peft(
    name: str, family: str, dtype: torch.dtype, folder: Callable[[str], str], tmp_path: Path
) -> None:
    """The logits are equal bit for bit, and the head came with the adapter."""
    from peft import PeftModel

    import fedpeft.methods.peft_tuners  # noqa: F401 - as whoever loads the adapter must

    tunable, fresh = METHODS[name].attach(toy_model(family, dtype=dtype), "share"), toy_model(family, dtype=dtype)
    assert {value.dtype for value in tunable.trainable} == {torch.float32}
    stir(tunable)
    METHODS[name].save(
        extract_tensors(tunable.shared), tmp_path / "adapter", base_model=folder(family), head_keys=tunable.head_keys
    )
    # A float32 head takes what a bfloat16 base gives only under autocast.
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        before, trained = logits(fresh), logits(tunable.model)
        loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
        assert torch.equal(logits(loaded), trained)
    assert not torch.allclose(trained, before, atol=1e-2)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == ("COMPACTER" if name == "compacter" else "BOTTLENECK")
    assert saved["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_without_a_head(name: str, family: str, folder: Callable[[str], str], tmp_path: Path) -> None:
    from peft import PeftModel

    tunable = METHODS[name].attach(toy_model(family, causal=True), "share")
    assert not tunable.head_keys and not tunable.local
    assert torch.equal(logits(tunable.model), logits(toy_model(family, causal=True)))
    stir(tunable)
    METHODS[name].save(
        extract_tensors(tunable.shared), tmp_path / "adapter", base_model=folder(family), head_keys=frozenset()
    )
    loaded = PeftModel.from_pretrained(toy_model(family, causal=True), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(tunable.model))


@pytest.mark.parametrize("name", list(METHODS))
def test_pefts_own_verbs_work(name: str, folder: Callable[[str], str], tmp_path: Path) -> None:
    """Switched off, the base answers; a second adapter has values of its own; merging is refused; unload undoes."""
    from peft import PeftModel

    tunable = METHODS[name].attach(toy_model("bert"), "freeze")
    stir(tunable)
    METHODS[name].save(
        extract_tensors(tunable.shared), tmp_path / "adapter", base_model=folder("bert"), head_keys=tunable.head_keys
    )
    model, plain = toy_model("bert"), logits(toy_model("bert"))
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "adapter"), adapter_name="one")
    trained = logits(loaded)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), plain)
    loaded.add_adapter("two", loaded.peft_config["one"])
    loaded.set_adapter("two")
    assert torch.equal(logits(loaded), plain)
    loaded.set_adapter("one")
    assert torch.equal(logits(loaded), trained)
    loaded.save_pretrained(str(tmp_path / "again"))
    again = PeftModel.from_pretrained(toy_model("bert"), str(tmp_path / "again" / "one"), low_cpu_mem_usage=True)
    assert torch.equal(logits(again), trained)
    with pytest.raises(ValueError, match="cannot be merged"):
        again.merge_and_unload()
    assert torch.equal(logits(again.unload()), plain)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_step_is_counted_without_weights(name: str, family: str) -> None:
    """A forward pass takes 2 x 2 k d operations more a token and adapter: k = 4, d = 32, four of them: 2048.

    A step takes twice the base's forward pass at most, and more than 1.4 times: the first layer gets no gradient.
    """
    from transformers import AutoModelForSequenceClassification

    def build(method: Any) -> nn.Module:
        model = AutoModelForSequenceClassification.from_config(toy_config(family), attn_implementation="eager")
        return method.attach(model, "freeze").model if method else model

    plain = measure_step_flops(lambda: build(None), forward_only=True)
    adapted = measure_step_flops(lambda: build(METHODS[name]), forward_only=True)
    assert adapted.per_token - plain.per_token == {"houlsby": 2048, "pfeiffer": 1024}[name]
    trained = measure_step_flops(lambda: build(METHODS[name]))
    assert 1.4 < trained.per_token / adapted.per_token < 2.1


@pytest.mark.parametrize("name", list(METHODS))
def test_outside_autocast_a_bfloat16_base_stays_one(name: str) -> None:
    """The sum has the base's dtype; the small products run in float32."""
    tunable = METHODS[name].attach(toy_model("gpt2", causal=True, dtype=torch.bfloat16), "freeze")
    stir(tunable)
    assert logits(tunable.model).dtype == torch.bfloat16


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Adapter(placement="both", bottleneck=0, activation="sine", target_modules="dense")
    assert [line.rsplit("(", 1)[1] for line in caught.value.problems] == [
        "set method.bottleneck)",
        "set method.activation)",
        "set method.placement)",
        "set method.target_modules)",
    ]
    for wrong in (True, 2.0, "8", -1, None):
        with pytest.raises(ConfigError, match="bottleneck must be a whole number >= 1"):
            Adapter(bottleneck=wrong)


def test_what_a_model_lacks_is_refused_in_one_line() -> None:
    from transformers import MPNetConfig, MPNetForSequenceClassification

    unknown = MPNetForSequenceClassification(
        MPNetConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    )
    cases = {
        r"not known which modules of a mpnet model end its sublayers: .* dense, .*set method.target_modules": (
            Adapter(),
            unknown,
        ),
        r"has no module out_proj.* \(set method.target_modules\)": (Adapter(target_modules=["out_proj"]), None),
        r"numbered layers, which bert.pooler.dense is not in": (Adapter(target_modules=["dense"]), None),
        r"bottleneck 33 is above the smallest target's size 32 \(set method.bottleneck\)": (
            Adapter(bottleneck=33),
            None,
        ),
        r"intermediate is a BertIntermediate|no linear module": (Adapter(target_modules=["intermediate"]), None),
    }
    for message, (method, model) in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            method.attach(model or toy_model("bert"), "share")
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


def test_chosen_modules_of_an_unknown_architecture() -> None:
    """Named modules do where the table has none, and the head's own ``dense`` gets no adapter."""
    from transformers import MPNetConfig, MPNetForSequenceClassification

    model = MPNetForSequenceClassification(
        MPNetConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    )
    tunable = Adapter(bottleneck=4, target_modules=["output.dense"]).attach(model, "share")
    adapted = {name.rsplit(".", 2)[0] for name in set(tunable.shared) - tunable.head_keys}
    assert adapted == {f"base_model.model.mpnet.encoder.layer.{i}.output.dense" for i in (0, 1)}
    assert "base_model.model.classifier.dense.weight" in tunable.head_keys
