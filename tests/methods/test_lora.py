"""LoRA's own numbers and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import toy as maker
from peft import LoraConfig, get_peft_model
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.methods.base import extract_tensors, load_tensors
from fedpeft.methods.heads import head_module_names, head_parameters
from fedpeft.methods.lora import LoRA, join_merged
from fedpeft.tasks.models import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("lora") / "model"))


def classifier(folder: str, dtype: str = "float32") -> nn.Module:
    return load_classifier(folder, num_labels=2, dtype=dtype, dropout=0.0, seed=0)


def test_merged_factors_join_the_others_under_their_scaling() -> None:
    """2 (1, 0)^T (1, 0) + (4, 6)^T (0, 1) = [[2, 4], [0, 6]]; y has nothing to merge and is padded with zeros."""
    one = {"lora_A.weight": np.float32([[1, 0]]), "lora_B.weight": np.float32([[1], [0]])}
    own = {f"{module}.{key}": value for module in "xy" for key, value in one.items()}
    merge = {"merge.x.lora_A.weight": np.float32([[0, 1]]), "merge.x.lora_B.weight": np.float32([[4], [6]])}
    joined, rank = join_merged({**own, **merge, "head": np.zeros(1)}, 2.0, 1)
    assert (rank, sorted(joined)) == (2, ["head", *sorted(own)])
    for module, wanted in (("x", [[2, 4], [0, 6]]), ("y", [[2, 0], [0, 0]])):
        a, b = joined[f"{module}.lora_A.weight"], joined[f"{module}.lora_B.weight"]
        assert (a.shape, b.shape) == ((2, 2), (2, 2))
        assert (2 * b @ a).tolist() == wanted


@pytest.mark.parametrize("rslora", [False, True])
def test_a_saved_adapter_keeps_its_scaling_at_the_rank_that_merging_makes(
    folder: str, tmp_path: Path, rslora: bool
) -> None:
    """Rank 2 and alpha 8 scale by 4 (by 8 / sqrt 2 rank-stabilised), and so must rank 3: alpha 12, or 8 sqrt(3 / 2)."""
    method = LoRA(rank=2, alpha=8, rslora=rslora)
    tensors = extract_tensors(method.attach(classifier(folder), "share").shared)
    name = next(key for key in tensors if key.endswith("lora_A.weight"))
    tensors["merge." + name] = np.ones((1, 32), np.float32)
    tensors["merge." + name.replace("lora_A", "lora_B")] = np.ones((32, 1), np.float32)
    method.save(tensors, tmp_path, base_model=folder, head_keys=frozenset(k for k in tensors if "classifier" in k))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["r"] == 3
    assert saved["lora_alpha"] == pytest.approx(8 * np.sqrt(1.5) if rslora else 12)


def test_names_and_shapes_are_hugging_faces(folder: str) -> None:
    """Two layers, query and value, hidden size 32, rank 3: A (3, 32), B (32, 3); the head (2, 32) and (2,)."""
    shared = extract_tensors(LoRA(rank=3).attach(classifier(folder), "share").shared)
    layers = [
        f"base_model.model.bert.encoder.layer.{i}.attention.self.{m}.lora_{f}.weight"
        for i in (0, 1)
        for m in ("query", "value")
        for f in "AB"
    ]
    assert list(shared) == sorted([*layers, "base_model.model.classifier.weight", "base_model.model.classifier.bias"])
    assert {shared[name].shape for name in layers if "lora_A" in name} == {(3, 32)}
    assert {shared[name].shape for name in layers if "lora_B" in name} == {(32, 3)}
    assert all(value.dtype == np.float32 for value in shared.values())
    assert all(not shared[name].any() for name in layers if "lora_B" in name)
    assert all(shared[name].any() for name in layers if "lora_A" in name)


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4), (2, 1), (4, 16)])
def test_update_is_alpha_over_rank_b_a(folder: str, rank: int, alpha: float) -> None:
    """W x + (alpha / rank) B (A x), computed by numpy, is what the adapted module returns."""
    method = LoRA(rank=rank, alpha=alpha, target_modules=["query"])
    tunable = method.attach(classifier(folder), "freeze")
    rng = np.random.default_rng(0)
    load_tensors(tunable.shared, {k: rng.normal(size=v.shape).astype(np.float32) for k, v in tunable.shared.items()})
    query = tunable.model.bert.encoder.layer[1].attention.self.query
    x = rng.normal(size=(5, 32)).astype(np.float32)
    got = query(torch.from_numpy(x)).detach().numpy()
    a, b = (query.__getattr__(f"lora_{f}")["default"].weight.detach().numpy().astype(np.float64) for f in "AB")
    base = query.base_layer.weight.detach().numpy().astype(np.float64)
    expected = x @ base.T + query.base_layer.bias.detach().numpy() + method.scaling * (x @ a.T @ b.T)
    assert method.scaling == alpha / rank
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_factors_are_float32_beside_a_bfloat16_base(folder: str) -> None:
    tunable = LoRA(rank=2).attach(classifier(folder, "bfloat16"), "share")
    assert {v.dtype for v in tunable.trainable} == {torch.float32}
    assert {p.dtype for p in tunable.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    # Casting the input up first would give the same values under autocast, more slowly.
    adapted = [module for module in tunable.model.modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 4
    assert not any(module.cast_input_dtype_enabled for module in adapted)


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LoRA(rank=0, alpha=0, dropout=1.0, target_modules=[])
    assert [line.split()[0] for line in caught.value.problems] == ["rank", "alpha", "dropout", "target_modules"]


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 1025},
        {"rank": 2.0},
        {"rank": True},
        {"rank": "8"},
        {"alpha": -1},
        {"alpha": float("nan")},
        {"dropout": -0.1},
        {"target_modules": "query"},
        {"ranks": [4, 8]},
        {"ranks": "phone"},
        {"ranks": {"phone": 0}},
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LoRA(**settings)


def test_unknown_targets_are_refused_with_those_that_exist(folder: str) -> None:
    with pytest.raises(
        ConfigError, match=r"has no module q_proj: it has dense, key, query, value \(set method.target_modules\)"
    ):
        LoRA(target_modules=["query", "q_proj"]).attach(classifier(folder), "share")


@pytest.mark.parametrize("causal", [False, True], ids=["classifier", "language model"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_all_linear_is_what_hugging_face_means_by_it(tmp_path: Path, family: str, causal: bool) -> None:
    """Without head and without the layer that makes logits."""
    if causal and family == "bert":
        pytest.skip("fedpeft has no masked language models")
    stored = tiny.write(tmp_path / family, family, causal=causal)
    task = "CAUSAL_LM" if causal else "SEQ_CLS"
    theirs = get_peft_model(
        tiny.load(stored, causal=causal),
        LoraConfig(target_modules="all-linear", task_type=task, fan_in_fan_out=family == "gpt2"),
    )
    adapted = {name.split(".lora_A")[0] for name, _ in theirs.named_parameters() if ".lora_A" in name}
    ours = LoRA(rank=2, target_modules="all-linear").attach(tiny.load(stored, causal=causal), "share")
    assert {name.split(".lora_A")[0] for name in ours.shared if ".lora_A" in name} == adapted
    assert len(adapted) > 4


def test_the_head_is_no_target(folder: str) -> None:
    with pytest.raises(ConfigError, match="has no module classifier"):
        LoRA(rank=1, target_modules=["classifier"]).attach(classifier(folder), "share")


def test_rank_above_a_target_is_refused_and_at_it_taken(folder: str) -> None:
    with pytest.raises(ConfigError, match="rank 33 is above the smallest target's size 32"):
        LoRA(rank=33).attach(classifier(folder), "share")
    with pytest.raises(ConfigError, match=r"rank 40 is above .* \(set method.ranks.laptop\)"):
        LoRA(rank=2, ranks={"phone": 1, "laptop": 40}).attach(classifier(folder), "share")
    assert LoRA(rank=32).attach(classifier(folder), "share").rank == 32


def test_heads_are_found_by_name(folder: str) -> None:
    model = classifier(folder)
    assert head_module_names(model) == ("classifier",)
    assert list(head_parameters(model)) == ["base_model.model.classifier.weight", "base_model.model.classifier.bias"]
    assert head_module_names(nn.Linear(1, 1)) == ()
    assert head_parameters(nn.Linear(1, 1)) == {}


def test_saved_config_names_base_and_head(folder: str, tmp_path: Path) -> None:
    tunable = LoRA(rank=2, alpha=4).attach(classifier(folder), "share")
    LoRA(rank=2, alpha=4).save(
        extract_tensors(tunable.shared),
        tmp_path / "new" / "adapter",
        base_model=folder,
        head_keys=tunable.head_keys,
    )
    config = json.loads((tmp_path / "new" / "adapter" / "adapter_config.json").read_text())
    wanted = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "base_model_name_or_path": folder,
        "task_type": "SEQ_CLS",
        "modules_to_save": ["classifier"],
        "target_modules": ["query", "value"],
        "inference_mode": True,
    }
    assert {key: config[key] for key in wanted} == wanted


def test_the_rank_stabilised_scaling_by_hand() -> None:
    """alpha / sqrt(rank): 6 / sqrt(9) = 2, at rank 4 it is 3; plain LoRA has 6 / 9 and 6 / 4."""
    stable, plain = LoRA(rank=9, alpha=6, rslora=True), LoRA(rank=9, alpha=6)
    assert (stable.scaling, stable.scaling_for(4)) == (2.0, 3.0)
    assert (plain.scaling, plain.scaling_for(4)) == (6 / 9, 1.5)


@pytest.mark.parametrize("rslora", [False, True])
def test_hf_peft_scales_as_the_method_says(folder: str, rslora: bool) -> None:
    method = LoRA(rank=4, alpha=3, rslora=rslora)
    model = method.attach(classifier(folder), "freeze").model
    assert model.bert.encoder.layer[0].attention.self.query.scaling["default"] == method.scaling


def test_dora_by_hand(folder: str) -> None:
    """W = m V / ||V||, V = W0 + s B A, row norms: what the adapted module returns, by numpy in float64."""
    method = LoRA(rank=2, alpha=4, target_modules=["query"], dora=True)
    tunable = method.attach(classifier(folder), "freeze")
    rng = np.random.default_rng(0)
    load_tensors(tunable.shared, {k: rng.normal(size=v.shape).astype(np.float32) for k, v in tunable.shared.items()})
    name = "base_model.model.bert.encoder.layer.1.attention.self.query."
    parts = {k.removeprefix(name): v.astype(np.float64) for k, v in extract_tensors(tunable.shared).items()}
    a, b, m = (parts[k] for k in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
    query = tunable.model.bert.encoder.layer[1].attention.self.query
    v = query.base_layer.weight.detach().numpy() + method.scaling * b @ a
    x = rng.normal(size=(5, 32)).astype(np.float32)
    expected = (
        x @ (m[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)).T + query.base_layer.bias.detach().numpy()
    )
    np.testing.assert_allclose(query(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_traits_tell_plain_factors_from_dora() -> None:
    assert LoRA().traits == LoRA(rslora=True).traits == {"factors", "ranks"}
    assert LoRA(dora=True).traits == frozenset()


def saved(method: LoRA, base: str, folder: Path) -> dict[str, Any]:
    """Attach to the base in ``base``, save, and return the adapter's config."""
    tunable = method.attach(classifier(base), "share")
    method.save(extract_tensors(tunable.shared), folder, base_model=base, head_keys=tunable.head_keys)
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import GPT2Config, GPT2Model

    path = tmp_path_factory.mktemp("lora-gpt2")
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=16, pad_token_id=0)
    GPT2Model(config).save_pretrained(path)
    return str(path)


def test_null_targets_are_hugging_faces_and_the_layout_is_saved(folder: str, gpt2: str, tmp_path: Path) -> None:
    """GPT-2's c_attn is a Conv1D of weight (in, out) = (32, 96): A (r, 32), B (96, r)."""
    bert_config, gpt2_config = saved(LoRA(rank=2), folder, tmp_path / "b"), saved(LoRA(rank=2), gpt2, tmp_path / "g")
    assert (bert_config["target_modules"], bert_config["fan_in_fan_out"]) == (["query", "value"], False)
    assert (gpt2_config["target_modules"], gpt2_config["fan_in_fan_out"]) == (["c_attn"], True)
    shapes = {k.split(".")[-2]: v.shape for k, v in LoRA(rank=2).attach(classifier(gpt2), "freeze").shared.items()}
    assert shapes == {"lora_A": (2, 32), "lora_B": (96, 2)}


def test_a_base_that_cannot_be_read_is_one_line(folder: str, tmp_path: Path) -> None:
    from fedpeft.core.errors import DataError

    with pytest.raises(DataError, match=r"base model .*nowhere cannot be read") as caught:
        LoRA().save({}, tmp_path, base_model=str(tmp_path / "nowhere"), head_keys=frozenset())
    assert "\n" not in str(caught.value)


def test_an_architecture_without_default_targets_is_refused_with_its_linear_names() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=64, dim=8, hidden_dim=8, n_layers=1, n_heads=2)
    )
    with pytest.raises(ConfigError) as caught:
        LoRA(rank=2).attach(model, "share")
    assert caught.value.problems == [
        "LORA has no default target modules for a distilbert model: name some of its linear modules "
        "k_lin, lin1, lin2, out_lin, q_lin, v_lin (set method.target_modules)"
    ]
