"""A blueprint knows of a run what its runtime knows, without its weights and data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import toy as maker

from fedpeft import config as cfg
from fedpeft.client.assumed import Assumed
from fedpeft.client.blueprint import Blueprint, draw
from fedpeft.client.building import build_runtime
from fedpeft.core.errors import ConfigError, DataError

LENGTH = 10
WORDS = 8


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a toy run whose texts are all ten tokens long: eight words and two marks."""
    return maker.alike(tmp_path_factory.mktemp("alike"), WORDS)


@pytest.fixture(scope="module")
def bare(alike: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the model's config.json and nothing else."""
    model = next(one.split("=", 1)[1] for one in alike if one.startswith("model.path="))
    folder = tmp_path_factory.mktemp("bare")
    shutil.copy(Path(model) / "config.json", folder)
    return f"model.path={folder}"


def blueprint(*overrides: str, seq_len: int | None = LENGTH, **assumed: Any) -> Blueprint:
    return draw(cfg.compose(overrides), Assumed(seq_len=seq_len, **assumed), ["laptop_cpu"])


@pytest.mark.parametrize(
    "method", ["lora", "dora", "full", "prefix", "prompt", "adalora", "ia3", "adapter", "slora", "lora_sb"]
)
def test_it_counts_what_the_runtime_counts(alike: list[str], bare: str, tmp_path: Path, method: str) -> None:
    """Names, shapes, FLOPs and memory of a step, from config.json alone."""
    config = maker.with_method(alike, tmp_path, method)
    runtime = build_runtime(config)
    kept = [one for one in alike if not one.startswith("method.")]
    ours = blueprint(*kept, f"method={method}", bare)
    assert runtime.sizing.most_tokens == ours.seq_len == LENGTH
    assert ours.shared_spec == runtime.shared_spec
    assert ours.tunable.rank == runtime.tunable.rank
    trained = frozenset(runtime.shared_spec)
    assert ours.step_flops(0, trained) == runtime.step_flops(0, trained)
    assert ours.step_memory(0, trained, 8, LENGTH) == runtime.step_memory(0, trained, 8, LENGTH)
    assert sum(array.base.nbytes for array in ours.initial.values() if array.base is not None) <= 8 * len(ours.initial)


def test_weights_are_on_no_device(alike: list[str], bare: str) -> None:
    assert {str(value.device) for value in blueprint(*alike, bare).tunable.model.parameters()} == {"meta"}


def test_a_base_in_few_bits_takes_what_it_takes_loaded(alike: list[str], tmp_path: Path) -> None:
    """Read off the headers of its files, in either kind and dtype."""
    pytest.importorskip("bitsandbytes", reason="needs the quant extra")
    from fedpeft.tasks.models import load_classifier
    from fedpeft.tasks.quantise import quantise
    from fedpeft.tasks.quantised import storage

    source = maker.write_model(tmp_path / "float", hidden=64)
    for bits in (8, 4):
        folder = quantise(str(source), tmp_path / str(bits), bits=bits).folder
        for dtype in ("float32", "bfloat16"):
            loaded = load_classifier(str(folder), num_labels=2, dtype=dtype, dropout=0.0, seed=0)
            found = blueprint(*alike, f"model.path={folder}", f"model.dtype={dtype}").sizing.storage
            assert found == storage(loaded, dtype) and found.saved_bytes > 0
        (folder / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match="stored in few bits"):
            blueprint(*alike, f"model.path={folder}")


def test_a_language_model_without_a_padding_token(tmp_path: Path) -> None:
    """GPT-2 has none, and classifiers refuse a batch without one."""
    import tiny
    from transformers import GPT2Config

    tiny.config("gpt2")
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=48)
    config.save_pretrained(tmp_path)
    for task in ("causal_lm", "text_classification"):
        ours = blueprint("model=hub", f"model.path={tmp_path}", f"task={task}", "task.path=.", seq_len=None)
        # 48 positions, and texts are cut to 128.
        assert ours.seq_len == 48
        assert ours.step_flops(0, frozenset(ours.shared_spec)).step(4, 48) > 0


def test_what_the_data_would_tell(alike: list[str], bare: str) -> None:
    """A head (labels, 32) and its bias; epochs over 21 examples in batches of 8 are 3 steps."""
    ours = blueprint(*alike, bare, num_labels=5, num_examples=21, seq_len=None)
    assert ours.shared_spec["base_model.model.classifier.weight"].shape == (5, 32)
    assert ours.seq_len == 16
    assert ours.num_steps == 3
    epochs = blueprint(*alike, bare, "client.local_steps=null", "client.local_epochs=2", num_examples=21)
    assert epochs.num_steps == 6


@pytest.mark.parametrize(
    ("more", "assumed", "error"),
    [
        (["client.local_steps=null"], {}, "set --examples"),
        (["model.max_length=64"], {"seq_len": 65}, "cut to model.max_length=64"),
        (["model.max_length=128"], {"seq_len": 65}, "at most 64: the model has 64 positions"),
        ([], {"seq_len": 17}, "set --seq-len or model.max_length"),
        (["method.target_modules=[nothing]"], {}, "nothing"),
    ],
)
def test_what_cannot_be_is_refused(
    alike: list[str], bare: str, more: list[str], assumed: dict[str, int], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        blueprint(*alike, bare, *more, **assumed)


def test_no_model_is_one_line(alike: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config.json"):
        blueprint(*alike, f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(DataError, match=r"no model at .*set model.path") as caught:
        blueprint(*alike, f"model.path={tmp_path}")
    assert len(str(caught.value).splitlines()) == 1


def test_every_assumption_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Assumed(seq_len=0, num_examples=0, num_labels=1, learned=0.0)
    assert len(caught.value.problems) == 4
