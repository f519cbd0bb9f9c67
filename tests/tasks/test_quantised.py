"""Bases stored in int8 and nf4: what is stored, what is computed from it, and that nothing writes to it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft.cli.main import main
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.methods.adalora import AdaLoRA
from fedpeft.methods.base import extract_tensors
from fedpeft.methods.lora import LoRA
from fedpeft.tasks.models import hash_model, is_quantised, load_classifier, plain_config
from fedpeft.tasks.quantise import Quantised, quantise

pytest.importorskip("bitsandbytes", reason="needs the quant extra")

HIDDEN, LAYERS = 64, 2
SOURCES = ("bert", "llama")
KINDS = {8: "int8", 4: "nf4"}
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
FIRST = {"bert": "bert.encoder.layer.0.intermediate.dense", "llama": "model.layers.0.mlp.up_proj"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float and stored folders: ``bert``, ``bert-8``, ``bert-4``, ``llama`` ..."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("stored")
    found = {name: maker.write_model(root / name, hidden=HIDDEN, layers=LAYERS) for name in SOURCES}
    config = LlamaConfig(
        vocab_size=len(maker.WORDS) + 4,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * HIDDEN,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(found["llama"])
    for name in SOURCES:
        for bits in KINDS:
            found[f"{name}-{bits}"] = quantise(str(found[name]), root / f"{name}-{bits}", bits=bits).folder
    return found


def load(folder: Path, dtype: str = "float32") -> Any:
    return load_classifier(str(folder), num_labels=3, dtype=dtype, dropout=0.0, seed=0)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 60, size=(8, 12)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def trained(model: Any, name: str, steps: int = 3) -> Any:
    """Train LoRA for some steps on fixed labels and return what came of it."""
    torch.manual_seed(0)
    tunable = LoRA(rank=4, alpha=8, target_modules=TARGETS[name]).attach(model, "share")
    optimizer = torch.optim.AdamW(tunable.trainable, lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(**inputs()).logits, torch.arange(8) % 3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return tunable


def test_a_rank_is_held_against_what_a_weight_in_4_bits_stands_for(folders: dict[str, Path]) -> None:
    """Its codes are a column: the smaller side of what is stored is 1, of what it stands for 64."""
    for kind in (LoRA, AdaLoRA):
        tunable = kind(rank=4, target_modules=["query"]).attach(load(folders["bert-4"]), "share")
        assert tunable.model(**inputs()).logits.shape == (8, 3)
        with pytest.raises(ConfigError, match="rank 65 is above the smallest target's size 64"):
            kind(rank=65, target_modules=["query"]).attach(load(folders["bert-4"]), "share")


@pytest.mark.parametrize("bits", KINDS)
def test_the_folder_has_the_size_that_follows_from_its_parts(folders: dict[str, Path], bits: int) -> None:
    """BERT of hidden h = 64, 64 words, 64 positions, 2 types, 2 layers.

    A layer has 4 matrices h h and 2 of h 2h, so n = 8 h^2 weights in 6 h + 2 h = 6 h + 2 h rows (4 h + 2 h + h = 7 h);
    with the pooler N = 2 * 8 h^2 + h^2 = 17 h^2 weights in R = 15 h rows of 13 matrices. Floats: embeddings (64 + 64 +
    2) h, 5 norms of 2 h, biases 15 h, i.e. (130 + 10 + 15) h = 155 h. int8 takes N + 4 R + 13 (a format byte each), nf4
    N / 2 + N / 64 and, for each matrix, code books of 16 and 256 float32 and 4 bytes for each of its scales' blocks of
    256 (at most 128 scales here: one), beside a description of under 200 bytes.
    """
    folder = folders[f"bert-{bits}"]
    raw = (folder / "model.safetensors").read_bytes()
    data = len(raw) - 8 - int.from_bytes(raw[:8], "little")
    weights, rows, floats = 17 * HIDDEN**2, 15 * HIDDEN, 155 * HIDDEN * 4
    if bits == 8:
        assert data == floats + weights + 4 * rows + 13
    else:
        least = floats + weights // 2 + weights // 64 + 13 * 4 * (16 + 256 + 1)
        assert least < data < least + 13 * 200
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("bits", KINDS)
def test_each_weight_is_within_its_rounding_and_the_rest_is_untouched(
    folders: dict[str, Path], name: str, bits: int
) -> None:
    """int8: half a step of the row's largest / 127, and float16 before it: 1 / 254 + 2^-11 < 0.0045 of the largest.

    nf4: half the widest gap of its code book, (1 - 0.6962) / 2 = 0.152 of the block's largest; its own 8-bit scale adds
    less than 0.03.
    """
    float_model, stored = load(folders[name]), load(folders[f"{name}-{bits}"])
    assert is_quantised(stored) == KINDS[bits] and is_quantised(float_model) is None
    count = 0
    for path, module in float_model.named_modules():
        other = stored.get_submodule(path)
        if not isinstance(module, nn.Linear) or path in ("classifier", "score"):
            for key, value in module.named_parameters(recurse=False):
                assert torch.equal(value, getattr(other, key)), f"{path}.{key}"
            continue
        count += 1
        assert type(other).__name__ == {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
        blocks = module.weight if bits == 8 else module.weight.reshape(-1, 64)
        error = (other.dense(torch.float32).reshape(blocks.shape) - blocks).abs()
        assert bool((error <= {8: 0.0045, 4: 0.182}[bits] * blocks.abs().amax(1, keepdim=True)).all())
        assert error.max() > 0
        if module.bias is not None:
            assert torch.equal(module.bias, other.bias)
    assert count == {"bert": 6 * LAYERS + 1, "llama": 7 * LAYERS}[name]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.03), (4, 0.3)])
def test_logits_are_near_those_of_the_float_model(folders: dict[str, Path], name: str, bits: int, bound: float) -> None:
    """Random weights of hidden 64 are a hard case; bounds are shares of the logits' spread (measured: 0.006, 0.15)."""
    with torch.no_grad():
        expected = load(folders[name]).eval()(**inputs()).logits
        got = load(folders[f"{name}-{bits}"]).eval()(**inputs()).logits
    assert 0 < (got - expected).abs().mean() < bound * expected.std()


@pytest.mark.parametrize("bits", KINDS)
def test_the_product_and_its_gradients_are_those_of_the_dense_weight(folders: dict[str, Path], bits: int) -> None:
    layer = load(folders[f"bert-{bits}"]).get_submodule(FIRST["bert"])
    layer.bias.requires_grad_(True)
    x = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer(x).square().sum().backward()
    got = x.grad.clone(), layer.bias.grad.clone()
    x.grad = layer.bias.grad = None
    nn.functional.linear(x, layer.dense(torch.float32), layer.bias).square().sum().backward()
    for one, other in zip(got, (x.grad, layer.bias.grad), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("bits", KINDS)
def test_nothing_is_written_and_evaluation_computes_what_training_does(
    folders: dict[str, Path], name: str, bits: int, dtype: str
) -> None:
    """bitsandbytes' own layers repack 4-bit weights in the first evaluation; after it no gradient gets through them."""
    model = load(folders[f"{name}-{bits}"], dtype)
    before = hash_model(model)
    places = {key: value.data_ptr() for key, value in model.named_parameters()}
    embedding = model.get_input_embeddings()
    embedding.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        with torch.inference_mode():
            evaluated = model.eval()(**inputs()).logits
        model.train()
        hidden = embedding(inputs()["input_ids"]).requires_grad_(True)
        logits = model(inputs_embeds=hidden, attention_mask=inputs()["attention_mask"]).logits
    logits.float().sum().backward()
    assert torch.equal(evaluated, logits)
    assert float(hidden.grad.float().abs().sum()) > 0
    assert hash_model(model) == before
    assert {key: value.data_ptr() for key, value in model.named_parameters()} == places


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("bits", KINDS)
def test_lora_trains_alike_on_two_loads_and_its_adapter_loads_in_hf_peft(
    folders: dict[str, Path], tmp_path: Path, name: str, bits: int
) -> None:
    """HF peft runs bitsandbytes' own layers, with bfloat16 products on some CPUs: hence 3 % of the spread."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    folder = folders[f"{name}-{bits}"]
    first, again = (trained(load(folder), name) for _ in range(2))
    ours = extract_tensors(first.shared)
    assert {value.dtype for value in ours.values()} == {np.dtype("float32")}
    assert all(np.array_equal(value, extract_tensors(again.shared)[key]) for key, value in ours.items())
    method = LoRA(rank=4, alpha=8, target_modules=TARGETS[name])
    method.save(ours, tmp_path / "adapter", base_model=str(folder), head_keys=first.head_keys)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, device_map={"": "cpu"})
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = first.model.eval()(**inputs()).logits
        torch.testing.assert_close(
            theirs(**inputs()).logits.float(), expected, rtol=0, atol=0.03 * float(expected.std())
        )


@pytest.mark.parametrize("bits", KINDS)
def test_the_hash_is_stable_and_covers_codes_and_scales(folders: dict[str, Path], bits: int) -> None:
    model = load(folders[f"llama-{bits}"])
    first = hash_model(model)
    assert first == hash_model(load(folders[f"llama-{bits}"]))
    others = [load(folders["llama"]), load(folders[f"llama-{12 - bits}"]), load(folders[f"llama-{bits}"], "bfloat16")]
    assert len({first, *map(hash_model, others)}) == 4
    weight = model.get_submodule(FIRST["llama"]).weight
    for part in (weight.data, weight.SCB if bits == 8 else weight.quant_state.state2.absmax):
        kept = part.flatten()[0].clone()
        part.view(-1)[0] += 1
        assert hash_model(model) != first
        part.view(-1)[0] = kept
    assert hash_model(model) == first


def test_loading_in_bfloat16_leaves_scales_in_float32(folders: dict[str, Path]) -> None:
    for bits in KINDS:
        one, other = (
            load(folders[f"bert-{bits}"], dtype).get_submodule(FIRST["bert"]) for dtype in ("float32", "bfloat16")
        )
        assert torch.equal(other.dense(torch.bfloat16), one.dense(torch.float32).bfloat16())


def test_a_twin_for_counting_is_a_float_model(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    model = load(folders["bert-4"])
    plain = plain_config(model.config)
    assert not hasattr(plain, "quantization_config") and hasattr(model.config, "quantization_config")
    with torch.device("meta"):
        twin = AutoModelForSequenceClassification.from_config(plain, attn_implementation="eager")
    assert is_quantised(twin) is None
    assert {type(module) for module in twin.modules() if isinstance(module, nn.Linear)} == {nn.Linear}


def test_a_federation_runs_on_an_nf4_base(
    folders: dict[str, Path], toy: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = main(["simulate", *toy, f"model.path={folders['bert-4']}", "rounds=2", f"run_dir={run}"])
    assert code == 0, capfd.readouterr().err
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [(row["num_replies"], row["dropped"]) for row in rounds] == [(4, {}), (4, {})]
    assert rounds[0]["eval"]["loss"] != rounds[1]["eval"]["loss"]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy=flora"], "strategy FLoRA adds to the base's weights, which .* stores in nf4"),
        (["strategy=fedex_lora"], "strategy FedExLoRA adds to the base's weights, which .* stores in nf4"),
        (["method=full"], "full fine-tuning needs a base model in float32 or bfloat16"),
        (["method=slora", "strategy=slora", "strategy.sparse_rounds=1"], "SLoRA|slora"),
    ],
)
def test_what_changes_the_weights_is_refused_on_an_nf4_base(
    folders: dict[str, Path],
    toy: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    overrides: list[str],
    line: str,
) -> None:
    lora = [one for one in toy if one.startswith("method.")] if "method=full" in overrides else []
    base = [one for one in toy if one not in lora]
    more = [f"model.path={folders['bert-4']}", "rounds=2", f"run_dir={tmp_path / 'run'}"]
    assert main(["simulate", *base, *overrides, *more]) == 2
    told = [text for text in capfd.readouterr().err.splitlines() if text.startswith("fedpeft: ")]
    assert len(told) == 1
    assert re.search(line, told[0])


def test_command_prints_the_folder_or_json(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    argv = ["data", "quantize", str(folders["bert"]), "--bits", "4", "--dtype", "bfloat16"]
    assert main(argv) == 0
    told = capsys.readouterr()
    folder = tmp_path / "quantised" / "bert-nf4"
    assert told.out == f"{folder}\n"
    assert "weights in nf4, the others in bfloat16" in told.err
    assert [path.name for path in folder.parent.iterdir()] == ["bert-nf4"]
    assert load(folder, "bfloat16").bert.embeddings.LayerNorm.weight.dtype == torch.bfloat16

    assert main(argv) == 1
    assert "exists: use it as model.path, or give --force" in capsys.readouterr().err
    assert main([*argv, "--force", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == str(folder) and facts["quantised_parameters"] == 17 * HIDDEN**2
    assert [path.name for path in folder.parent.iterdir()] == ["bert-nf4"]


def _refused(call: Callable[[], Quantised], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_refusals_are_one_line_and_leave_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, bert = tmp_path / "out", str(folders["bert"])
    _refused(lambda: quantise(bert, out, bits=3), ConfigError, r"bits must be 8 or 4, got 3")
    _refused(lambda: quantise(bert, out, bits=4, dtype="float16"), ConfigError, "dtype must be float32 or bfloat16")
    _refused(lambda: quantise(str(folders["bert-8"]), out, bits=4), ConfigError, "is already stored in int8")
    _refused(lambda: quantise(str(tmp_path), out, bits=4), DataError, "no tokenizer at")
    precious = tmp_path / "precious"
    precious.mkdir()
    _refused(lambda: quantise(bert, precious, bits=4, force=True), DataError, "--force replaces models only")
    (tmp_path / "file").write_text("")
    _refused(lambda: quantise(bert, tmp_path / "file" / "out", bits=4), DataError, "cannot write .*--out")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for call in (lambda: quantise(bert, out, bits=4), lambda: load(folders["bert-4"])):
        _refused(call, ConfigError, r"need the package bitsandbytes \(pip install fedpeft\[quant\]\)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "precious"]


def test_other_forms_of_storage_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    for entries, form in (
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes fp4"),
    ):
        config = json.loads((folders["bert"] / "config.json").read_text()) | {"quantization_config": entries}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match=f"is stored as {form}, fedpeft runs bitsandbytes int8 and nf4"):
            load(tmp_path)
