"""Laws that every method in conf/method obeys, on three encoders and a decoder; they find new ones by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft import config as cfg
from fedpeft.client.trainer import TrainSettings, train
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.methods.base import HEAD_MODES, Method, Tunable, extract_tensors, load_tensors
from fedpeft.tasks.models import load_classifier
from fedpeft.tasks.text_classification import TextClassification

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
TARGETS = {
    "bert": "[query,value]",
    "llama": "[q_proj,v_proj]",
    "roberta": "[query,dense]",
    "distilbert": "[q_lin,v_lin]",
}
"""RoBERTa's head has a ``dense`` of its own; DistilBERT's head is two modules."""
FLOPS = StepFlops(per_example=0.0, per_token=0.0, per_token_pair=0.0)

every = pytest.mark.parametrize("method", METHODS)
both = pytest.mark.parametrize("family", ["bert", "llama"])
families = pytest.mark.parametrize("family", list(TARGETS))
heads = pytest.mark.parametrize("head", HEAD_MODES)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of random base models, two layers each."""
    from transformers import DistilBertConfig, DistilBertModel, LlamaConfig, LlamaModel, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("bases")
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
    small = {"vocab_size": 64, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    makers = {
        "llama": lambda: LlamaModel(LlamaConfig(**shape, num_key_value_heads=2)),
        "roberta": lambda: RobertaModel(RobertaConfig(**shape, max_position_embeddings=64)),
        "distilbert": lambda: DistilBertModel(DistilBertConfig(**small, max_position_embeddings=64)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, make_model in makers.items():
            make_model().save_pretrained(folder / name)
    maker.write_model(folder / "bert")
    return {name: str(folder / name) for name in TARGETS}


@pytest.fixture
def make(bases: dict[str, str]) -> Callable[..., tuple[Method, Tunable]]:
    """Return a function that attaches a method to a fresh base model."""

    def attach(name: str, family: str, head: str = "share", dtype: str = "float32") -> tuple[Method, Tunable]:
        config = cfg.compose([f"method={name}"])["method"]
        if "target_modules" in config:
            config = cfg.compose([f"method={name}", f"method.target_modules={TARGETS[family]}"])["method"]
        method: Method = cfg.build(config)
        torch.manual_seed(3)
        return method, method.attach(base(bases[family], dtype), head)

    return attach


def base(folder: str, dtype: str = "float32", seed: int = 0) -> nn.Module:
    model = load_classifier(folder, num_labels=3, dtype=dtype, dropout=0.0, seed=seed)
    model.config.pad_token_id = 0
    return model


def task() -> TextClassification:
    """24 rows of 3 to 9 tokens and three labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, size=24)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TextClassification(
        tokens=rng.integers(4, 60, size=offsets[-1]).astype(np.int32), types=None, offsets=offsets,
        labels=rng.integers(3, size=24), groups=np.zeros(24, np.int64), num_groups=1, pad_id=0,
    )  # fmt: skip


def step(tunable: Tunable, steps: int, dtype: str = "float32", **settings: Any) -> None:
    options = TrainSettings(local_steps=steps, batch_size=8, lr=0.05, **settings)
    train(tunable, task(), np.arange(24), options, dtype=dtype, seed=1, flops=FLOPS)


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    inputs = {k: v for k, v in task().collate(np.arange(24)).items() if k != "labels"}
    with torch.inference_mode():
        return model(**inputs).logits


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if not torch.equal(value, before[name])
    }


def live_names(tunable: Tunable) -> set[str]:
    """Return the model's own names of the parameters that the method names."""
    named = {id(value) for value in tunable.trainable}
    return {name for name, parameter in tunable.model.named_parameters() if id(parameter) in named}


def shifted(tensors: Tensors) -> Tensors:
    rng = np.random.default_rng(5)
    return {key: (value + rng.normal(size=value.shape)).astype(value.dtype) for key, value in tensors.items()}


def identical(a: Tensors, b: Tensors) -> bool:
    return specs(a) == specs(b) and all(a[k].tobytes() == b[k].tobytes() for k in a)


@every
@families
@heads
def test_named_tensors_are_the_models_own_parameters(
    method: str, family: str, head: str, make: Callable[..., tuple[Method, Tunable]]
) -> None:
    """An optimiser that is given copies trains nothing."""
    _, tunable = make(method, family, head)
    assert len(live_names(tunable)) == len(tunable.trainable) == len(tunable.shared) + len(tunable.local)
    assert {n for n, p in tunable.model.named_parameters() if p.requires_grad} == live_names(tunable)
    assert list(tunable.shared) == sorted(tunable.shared)
    assert list(tunable.local) == sorted(tunable.local)
    assert all(value.dtype == torch.float32 for value in tunable.trainable)


@every
@both
def test_load_then_extract_is_the_identity(
    method: str, family: str, make: Callable[..., tuple[Method, Tunable]]
) -> None:
    _, tunable = make(method, family)
    first = extract_tensors(tunable.shared)
    outputs = logits(tunable.model)
    load_tensors(tunable.shared, first)
    assert identical(extract_tensors(tunable.shared), first)
    assert torch.equal(logits(tunable.model), outputs)
    other = shifted(first)
    load_tensors(tunable.shared, other)
    assert identical(extract_tensors(tunable.shared), other)
    assert not torch.equal(logits(tunable.model), outputs)
    load_tensors(tunable.shared, first)
    assert torch.equal(logits(tunable.model), outputs)


@every
@both
def test_extracted_tensors_are_copies(method: str, family: str, make: Callable[..., tuple[Method, Tunable]]) -> None:
    _, tunable = make(method, family)
    taken = extract_tensors(tunable.shared)
    kept = {key: value.copy() for key, value in taken.items()}
    step(tunable, 2)
    assert identical(taken, kept)
    given = shifted(taken)
    load_tensors(tunable.shared, given)
    step(tunable, 2)
    assert identical(given, shifted(taken))


@every
@families
@heads
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_named_tensors_move_and_every_one_does(
    method: str, family: str, head: str, dtype: str, make: Callable[..., tuple[Method, Tunable]]
) -> None:
    _, tunable = make(method, family, head, dtype)
    before, names = snapshot(tunable.model), live_names(tunable)
    step(tunable, 1, dtype)
    assert changed(tunable.model, before) <= names
    assert changed(tunable.model, before)
    step(tunable, 4, dtype)
    assert changed(tunable.model, before) == names


@every
@both
def test_weight_decay_and_sgd_leave_the_base_alone(
    method: str, family: str, make: Callable[..., tuple[Method, Tunable]]
) -> None:
    _, tunable = make(method, family)
    before = snapshot(tunable.model)
    step(tunable, 2, weight_decay=0.5, optimizer="sgd")
    assert changed(tunable.model, before) <= live_names(tunable)


@every
@both
def test_head_modes_decide_what_travels_and_what_trains(
    method: str, family: str, make: Callable[..., tuple[Method, Tunable]]
) -> None:
    share, local, freeze = (make(method, family, head)[1] for head in HEAD_MODES)
    head = {
        "bert": {"base_model.model.classifier.weight", "base_model.model.classifier.bias"},
        "llama": {"base_model.model.score.weight"},
    }[family]
    assert share.head_keys == local.head_keys == freeze.head_keys == head
    assert set(share.shared) == set(local.shared) | head
    assert set(local.local) == head
    assert (set(share.local), set(freeze.local)) == (set(), set())
    assert set(freeze.shared) == set(local.shared)
    assert not set(local.shared) & head


@every
@both
@heads
def test_attaching_changes_no_output(
    method: str, family: str, head: str, bases: dict[str, str], make: Callable[..., tuple[Method, Tunable]]
) -> None:
    """Training starts from the base model."""
    _, tunable = make(method, family, head)
    torch.testing.assert_close(logits(tunable.model), logits(base(bases[family])), rtol=0, atol=0)


@every
@families
def test_the_saved_adapter_is_hugging_faces(
    method: str, family: str, bases: dict[str, str], make: Callable[..., tuple[Method, Tunable]], tmp_path: Path
) -> None:
    """PeftModel on a fresh base, whose own head is another, gives the same logits: the head travelled too."""
    from peft import PeftModel

    how, tunable = make(method, family)
    step(tunable, 3)
    how.save(
        extract_tensors(tunable.shared), tmp_path / "adapter", base_model=bases[family], head_keys=tunable.head_keys
    )
    fresh = base(bases[family], seed=99)
    assert not torch.allclose(logits(fresh), logits(tunable.model), atol=1e-3)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), logits(tunable.model), rtol=1e-6, atol=1e-6)


@every
@families
def test_an_adapter_without_a_head_loads_too(
    method: str, family: str, bases: dict[str, str], make: Callable[..., tuple[Method, Tunable]], tmp_path: Path
) -> None:
    from peft import PeftModel

    how, tunable = make(method, family, "freeze")
    step(tunable, 3)
    how.save(extract_tensors(tunable.shared), tmp_path, base_model=bases[family], head_keys=tunable.head_keys)
    loaded = PeftModel.from_pretrained(base(bases[family]), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(tunable.model), rtol=1e-6, atol=1e-6)


@every
@both
def test_attaching_twice_gives_the_same_names_and_seeded_values(
    method: str, family: str, make: Callable[..., tuple[Method, Tunable]]
) -> None:
    assert identical(extract_tensors(make(method, family)[1].shared), extract_tensors(make(method, family)[1].shared))


@every
def test_an_unknown_head_mode_is_refused(method: str, make: Callable[..., tuple[Method, Tunable]]) -> None:
    with pytest.raises(ConfigError, match="head must be one of share, local, freeze, got 'shared'"):
        make(method, "bert", "shared")
