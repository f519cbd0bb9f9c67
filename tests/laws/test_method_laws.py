"""Laws that every method in conf/method obeys, on three encoders and two decoders; they find new ones by themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy as maker
from small_models import labelled_texts
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedpeft import config as cfg
from fedpeft.client.placing import place
from fedpeft.client.trainer import TrainSettings, new_optimizer, train
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors
from fedpeft.device_profiles.flops import StepFlops, measure_step_flops
from fedpeft.methods.base import HEAD_MODES, Method, Tunable, extract_tensors, load_tensors
from fedpeft.methods.peft_tuners.cored import FixedLinear
from fedpeft.tasks.models import load_classifier
from fedpeft.tasks.text_classification import TextClassification

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
ENCODERS = ("bert", "roberta", "distilbert")
FAMILIES = (*ENCODERS, "gpt2", "llama")
UNDEFINED = {
    ("bitfit", "llama"): "BitFit trains biases, and LlamaForSequenceClassification has none",
    ("peft", "gpt2"): "HF peft cannot attach LOHA to GPT2ForSequenceClassification: .*Conv1D",
    ("llama_adapter", "bert"): "LLaMA-Adapter",
    ("llama_adapter", "roberta"): "LLaMA-Adapter",
    ("llama_adapter", "distilbert"): "LLaMA-Adapter",
}
"""What is not defined, and the reason given on attaching."""
TARGETS = {"roberta": "[query,dense]", "distilbert": "[q_lin,v_lin]"}
"""RoBERTa's head has a ``dense`` of its own; DistilBERT has no default in HF peft, and its head is two modules."""
TARGETED = {"lora", "rslora", "dora", "adalora", "ia3", "peft", "slora", "lora_sb"}
SMALL = {"lora_sb": ["method.rank=8"]}
"""What makes a method fit models as small as these."""
MOVES_AT_ONCE = {"prefix", "prompt", "p_tuning"}
"""Methods by which a text has more tokens: attaching changes the output."""
WHOLE = {"full"}
"""Methods that save a whole model, which is none without its head."""
HEADS = {
    "bert": {"base_model.model.classifier.weight", "base_model.model.classifier.bias"},
    "llama": {"base_model.model.score.weight"},
}
FREE = StepFlops(per_example=0.0, per_token=0.0, per_token_pair=0.0)

PAIRS = [(method, family) for method in METHODS for family in FAMILIES if (method, family) not in UNDEFINED]
BOTH = [pair for pair in PAIRS if pair[1] in HEADS]
every = pytest.mark.parametrize(("method", "family"), PAIRS)
both = pytest.mark.parametrize(("method", "family"), BOTH)
heads = pytest.mark.parametrize("head", HEAD_MODES)
# HF peft warns on loading LayerNorm tuning that it has not measured that layer.
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type")


@dataclass(frozen=True, kw_only=True)
class Life:
    """A method attached, trained and saved once; several laws look at it.

    Attributes:
        how: the method.
        tunable: the trained model.
        fresh: logits before training.
        early: names of what one step changed.
        late: names of what five steps changed.
        named: the model's own names of what the method trains.
        folder: the saved adapter.
    """

    how: Method
    tunable: Tunable
    fresh: torch.Tensor
    early: set[str]
    late: set[str]
    named: set[str]
    folder: Path


class Bench:
    """Random base models of two layers, made once, and what grows on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_bases(folder)
        self.base = cache(self._base)
        self.life = cache(self._life)

    def _base(self, family: str, dtype: str, seed: int) -> nn.Module:
        model = load_classifier(str(self.folder / family), num_labels=3, dtype=dtype, dropout=0.0, seed=seed)
        model.config.pad_token_id = 0
        # New models have biases of zero and scales of one, by which a lost or doubled one would pass unseen.
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 10
        return model

    def fresh(self, family: str, dtype: str = "float32", seed: int = 0) -> nn.Module:
        """Return a base model of one's own."""
        return copy.deepcopy(self.base(family, dtype, seed))

    def attach(self, name: str, family: str, head: str = "share", dtype: str = "float32") -> tuple[Method, Tunable]:
        """Attach a method to a fresh base model."""
        method = build(name, family)
        torch.manual_seed(3)
        return method, method.attach(self.fresh(family, dtype), head)

    def _life(self, name: str, family: str) -> Life:
        how, tunable = self.attach(name, family)
        fresh, before, named = logits(tunable.model), snapshot(tunable.model), live_names(tunable)
        step(tunable, 1)
        early = changed(tunable.model, before)
        step(tunable, 4)
        folder = self.folder / f"{name}-{family}"
        self.save(how, tunable, family, folder)
        late = changed(tunable.model, before)
        return Life(how=how, tunable=tunable, fresh=fresh, early=early, late=late, named=named, folder=folder)

    def save(self, how: Method, tunable: Tunable, family: str, folder: Path) -> None:
        """Save what travels, for the base model's folder."""
        base = str(self.folder / family)
        how.save(extract_tensors(tunable.shared), folder, base_model=base, head_keys=tunable.head_keys)


@cache
def build(name: str, family: str) -> Method:
    """Build a method from its YAML, with target modules where a default would not do."""
    targets = [f"method.target_modules={TARGETS[family]}"] if name in TARGETED and family in TARGETS else []
    method: Method = cfg.build(cfg.compose([f"method={name}", *targets, *SMALL.get(name, [])])["method"])
    return method


def write_bases(folder: Path) -> None:
    """Write the base models as Hugging Face folders."""
    from transformers import (
        DistilBertConfig,
        DistilBertModel,
        GPT2Config,
        GPT2Model,
        LlamaConfig,
        LlamaModel,
        RobertaConfig,
        RobertaModel,
    )

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "pad_token_id": 0}
    distil = DistilBertConfig(
        vocab_size=64, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=64, pad_token_id=0
    )
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaModel(LlamaConfig(**shape, num_key_value_heads=2)).save_pretrained(folder / "llama")
        RobertaModel(RobertaConfig(**shape, max_position_embeddings=64)).save_pretrained(folder / "roberta")
        DistilBertModel(distil).save_pretrained(folder / "distilbert")
        GPT2Model(gpt2).save_pretrained(folder / "gpt2")
    maker.write_model(folder / "bert")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    return Bench(tmp_path_factory.mktemp("bases"))


def task() -> TextClassification:
    """24 rows of 3 to 9 tokens and three labels."""
    return labelled_texts(24, shortest=3, longest=9, labels=3)


def step(tunable: Tunable, steps: int, dtype: str = "float32", **settings: Any) -> None:
    options = TrainSettings(local_steps=steps, batch_size=8, lr=0.05, **settings)
    train(tunable, task(), np.arange(24), options, dtype=dtype, seed=1, flops=FREE)


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    inputs = {k: v for k, v in task().collate(np.arange(24)).items() if k != "labels"}
    with torch.inference_mode():
        return model(**inputs).logits.clone()


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


def trained_names(tunable: Tunable) -> set[str]:
    """Return those of them that train: LoRA-SB's factors travel, but stay fixed."""
    fixed = {f"{name}.weight" for name, module in tunable.model.named_modules() if isinstance(module, FixedLinear)}
    return live_names(tunable) - fixed


def shifted(tensors: Tensors) -> Tensors:
    rng = np.random.default_rng(5)
    return {key: (value + rng.normal(size=value.shape)).astype(value.dtype) for key, value in tensors.items()}


def identical(a: Tensors, b: Tensors) -> bool:
    return specs(a) == specs(b) and all(a[k].tobytes() == b[k].tobytes() for k in a)


def reload(folder: Path, base: nn.Module) -> nn.Module:
    """Load what a method saved as its users do: an adapter onto a base, a whole model by itself."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    import fedpeft.methods.peft_tuners  # noqa: F401 - makes the kinds known that HF peft lacks

    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(base, str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = 0
    return model


def test_every_undefined_pair_is_one_that_could_be() -> None:
    """A row of the table that names nothing would excuse nothing, unseen."""
    assert {method for method, _ in UNDEFINED} | TARGETED | MOVES_AT_ONCE | WHOLE <= set(METHODS)
    assert {family for _, family in UNDEFINED} | TARGETS.keys() <= set(FAMILIES)


@pytest.mark.parametrize(("method", "family"), UNDEFINED)
def test_what_is_not_defined_is_refused_with_the_reason(method: str, family: str, bench: Bench) -> None:
    with pytest.raises(ConfigError, match=UNDEFINED[method, family]) as caught:
        bench.attach(method, family)
    assert all("\n" not in problem for problem in caught.value.problems)


@every
def test_named_tensors_are_the_models_own_parameters(method: str, family: str, bench: Bench) -> None:
    """An optimiser that is given copies trains nothing."""
    assert_named(bench.life(method, family).tunable)


def assert_named(tunable: Tunable) -> None:
    assert len(live_names(tunable)) == len(tunable.trainable) == len(tunable.shared) + len(tunable.local)
    assert {n for n, p in tunable.model.named_parameters() if p.requires_grad} == trained_names(tunable)
    assert list(tunable.shared) == sorted(tunable.shared)
    assert list(tunable.local) == sorted(tunable.local)
    assert all(value.dtype == torch.float32 and value.is_leaf for value in tunable.trainable)


@every
def test_only_named_tensors_move_and_every_one_does(method: str, family: str, bench: Bench) -> None:
    life = bench.life(method, family)
    assert life.early
    assert life.early <= life.named
    assert life.late == trained_names(life.tunable)


@every
def test_what_is_saved_is_hugging_faces(method: str, family: str, bench: Bench) -> None:
    """On a fresh base, whose own head is another, the logits are those that were trained: the head travelled too."""
    life = bench.life(method, family)
    fresh, trained = bench.fresh(family, seed=99), logits(life.tunable.model)
    assert not torch.allclose(logits(fresh), trained, atol=1e-3)
    torch.testing.assert_close(logits(reload(life.folder, fresh)), trained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("method", "family"), [pair for pair in PAIRS if pair[0] not in MOVES_AT_ONCE])
def test_attaching_changes_no_output(method: str, family: str, bench: Bench) -> None:
    """Training starts from the base model."""
    torch.testing.assert_close(bench.life(method, family).fresh, logits(bench.fresh(family)), rtol=0, atol=0)


@both
@pytest.mark.parametrize("head", ["share", "freeze"])
def test_a_bfloat16_base_stays_and_the_rest_moves(method: str, family: str, head: str, bench: Bench) -> None:
    _, tunable = bench.attach(method, family, head, "bfloat16")
    assert_named(tunable)
    before, names = snapshot(tunable.model), trained_names(tunable)
    step(tunable, 5, "bfloat16")
    assert changed(tunable.model, before) == names


@both
def test_load_then_extract_is_the_identity(method: str, family: str, bench: Bench) -> None:
    _, tunable = bench.attach(method, family)
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


@both
def test_extracted_tensors_are_copies(method: str, family: str, bench: Bench) -> None:
    _, tunable = bench.attach(method, family)
    taken = extract_tensors(tunable.shared)
    kept = {key: value.copy() for key, value in taken.items()}
    step(tunable, 1)
    assert identical(taken, kept)
    given = shifted(taken)
    load_tensors(tunable.shared, given)
    step(tunable, 1)
    assert identical(given, shifted(taken))


@both
def test_weight_decay_and_sgd_leave_the_base_alone(method: str, family: str, bench: Bench) -> None:
    _, tunable = bench.attach(method, family)
    before = snapshot(tunable.model)
    step(tunable, 2, weight_decay=0.5, optimizer="sgd")
    assert changed(tunable.model, before) <= live_names(tunable)


@both
def test_head_modes_decide_what_travels_and_what_trains(method: str, family: str, bench: Bench) -> None:
    share, local, freeze = (bench.attach(method, family, head)[1] for head in HEAD_MODES)
    head = HEADS[family]
    for tunable in (share, local, freeze):
        assert_named(tunable)
        assert tunable.head_keys == head
    assert set(share.shared) == set(local.shared) | head
    assert set(local.local) == head
    assert (set(share.local), set(freeze.local)) == (set(), set())
    assert set(freeze.shared) == set(local.shared)
    assert not set(local.shared) & head


@pytest.mark.parametrize(("method", "family"), [pair for pair in BOTH if pair[0] not in WHOLE])
def test_an_adapter_without_a_head_loads_too(method: str, family: str, bench: Bench, tmp_path: Path) -> None:
    how, tunable = bench.attach(method, family, "freeze")
    step(tunable, 2)
    bench.save(how, tunable, family, tmp_path)
    loaded = reload(tmp_path, bench.fresh(family))
    torch.testing.assert_close(logits(loaded), logits(tunable.model), rtol=1e-6, atol=1e-6)


@both
def test_attaching_twice_gives_the_same_names_and_seeded_values(method: str, family: str, bench: Bench) -> None:
    first, second = (extract_tensors(bench.attach(method, family)[1].shared) for _ in range(2))
    assert identical(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_head_mode_is_refused(method: str, bench: Bench) -> None:
    family = next(family for family in FAMILIES if (method, family) in PAIRS)
    with pytest.raises(ConfigError, match="head must be one of share, local, freeze, got 'shared'"):
        bench.attach(method, family, "shared")


@pytest.mark.parametrize(("method", "family"), [pair for pair in PAIRS if pair[1] in ("bert", "gpt2", "llama")])
def test_a_steps_work_is_counted_as_it_is_done(method: str, family: str, bench: Bench) -> None:
    """The polynomial from the meta device against a step on real tensors with padding."""
    from transformers import AutoModelForSequenceClassification

    def model() -> nn.Module:
        config = copy.deepcopy(bench.base(family, "float32", 0).config)
        config.num_hidden_layers = 1
        return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")

    how = build(method, family)
    real = how.attach(model(), "share").model.train()
    inputs = torch.full((3, 11), 5)
    mask = torch.ones_like(inputs)
    mask[0, -2:], inputs[0, -2:] = 0, 0
    with FlopCounterMode(display=False) as counter:
        real(input_ids=inputs, attention_mask=mask).logits.float().sum().backward()
    flops = measure_step_flops(lambda: how.attach(model(), "share").model)
    assert flops.step(3, 11) == pytest.approx(counter.get_total_flops(), rel=1e-9)


@every
def test_a_step_is_computed_where_the_model_is(method: str, family: str, bench: Bench) -> None:
    """On torch's meta device, which refuses what was left on the CPU as CUDA does."""
    _, tunable = bench.attach(method, family)
    # Fused kernels look whether a mask hides anything, and encoders do: meta tensors have no values.
    tunable.model.set_attn_implementation("eager")  # type: ignore[operator]
    tunable = place(tunable, "meta")
    batch = dict(task().collate(np.arange(8)))
    if family in ENCODERS:
        del batch["attention_mask"]
    losses = task().per_example_loss(tunable.model, batch)
    losses.mean().backward()
    live = [value for value in tunable.trainable if value.grad is not None]
    assert len(live) > 0
    torch.nn.utils.clip_grad_norm_(live, 1.0)
    new_optimizer(live, TrainSettings()).step()
    assert {losses.device.type, *(value.device.type for value in tunable.trainable)} == {"meta"}
