"""A runtime tells the memory that its own training then takes, and what its clients' texts need."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_lm
from step_models import lent_bytes
from toy import with_method

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.learning import longest_text
from fedpeft.client.runtime import Runtime
from fedpeft.client.sizing import holds_gradients, neighbours
from fedpeft.client.state import personal_state
from fedpeft.client.trainer import autocast
from fedpeft.core.wire import Instruction
from fedpeft.device_profiles.checkpointing import checkpointed
from fedpeft.privacy.client_level import ClientLevel
from fedpeft.privacy.example_level import ExampleLevel

Make = Callable[..., dict[str, Any]]

LEVELS = [
    None,
    ExampleLevel(epsilon=8.0),
    ExampleLevel(epsilon=8.0, mode="hooks"),
    ExampleLevel(epsilon=8.0, mode="microbatch"),
    ClientLevel(epsilon=8.0),
]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("lm")
    model, data = toy_lm.write_model(folder / "model"), toy_lm.write_data(folder / "data")
    return build_runtime(new_config({**cfg.compose(toy_lm.overrides(model, data)), "run_dir": str(folder / "run")}))


def real_step(runtime: Runtime, rows: Any, *, checkpointing: bool = False) -> int:
    """Bytes that the allocator lends in a step on these rows, optimiser state included."""
    model, task = runtime.tunable.model.train(), runtime.examples.task
    optimizer = torch.optim.AdamW(runtime.tunable.trainable, lr=1e-3)

    def step(rows: Any) -> None:
        with autocast(runtime.dtype, runtime.tunable.device):
            loss = task.per_example_loss(model, task.collate(rows)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(runtime.tunable.trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with checkpointed(model, checkpointing):
        step(rows[:1])
        peak = lent_bytes(lambda: step(rows))
    return peak + sum(v.nbytes for state in optimizer.state.values() for v in state.values())


def told(runtime: Runtime, *sizes: Any) -> float:
    memory = runtime.step_memory(0, frozenset(runtime.initial), *sizes)
    return memory.step_bytes + memory.optimizer_bytes


@pytest.mark.parametrize(
    ("method", "dtype"), [("lora", "float32"), ("full", "float32"), ("adapter", "bfloat16"), ("prefix", "bfloat16")]
)
def test_a_classifier_needs_what_it_is_said_to_need(toy: list[str], tmp_path: Path, method: str, dtype: str) -> None:
    """So small a model: what a kernel takes inside shows. Within 4 %."""
    runtime = build_runtime(with_method(toy, tmp_path, method, f"model.dtype={dtype}", "model.dropout=0.1"))
    rows, _ = runtime.client_rows(1)
    rows, width = rows[:24], int(runtime.examples.task.lengths(rows[:24]).max())
    assert told(runtime, 24, width) == pytest.approx(real_step(runtime, rows), rel=0.04)
    if method != "prefix":
        again = told(runtime, 24, width, True)
        assert again == pytest.approx(real_step(runtime, rows, checkpointing=True), rel=0.04)


def test_a_language_model_needs_what_it_is_said_to_need(language_model: Runtime) -> None:
    """Its logits are those of the learned tokens, of which texts have more or fewer: within 6 %."""
    runtime = language_model
    rows = runtime.client_rows(0)[0][:8]
    width = int(runtime.examples.task.lengths(rows).max())
    assert 0 < runtime.sizing.learned < 1
    assert told(runtime, 8, width) == pytest.approx(real_step(runtime, rows), rel=0.06)


def test_an_evaluation_needs_what_it_is_said_to_need(language_model: Runtime, toy_config: Make) -> None:
    for runtime in (language_model, build_runtime(toy_config())):
        rows, model = runtime.examples.eval_rows[:12], runtime.tunable.model.eval()
        width = int(runtime.examples.eval_task.lengths(rows).max())
        runtime.examples.eval_task.score(model, rows[:1])
        real = lent_bytes(lambda: runtime.examples.eval_task.score(model, rows))  # noqa: B023
        assert runtime.step_memory(0, None, 12, width).step_bytes == pytest.approx(real, rel=0.06)


def test_weights_are_those_of_the_loaded_model_and_tensors_are_held_twice(toy_config: Make) -> None:
    runtime = build_runtime(toy_config())
    memory = runtime.step_memory(0, frozenset(runtime.initial), 8, 16)
    held = [*runtime.tunable.model.parameters(), *runtime.tunable.model.buffers()]
    assert memory.weights_bytes == sum(value.nbytes for value in held)
    assert memory.copies_bytes == 2 * sum(value.nbytes for value in runtime.initial.values())


def test_smaller_ranks_and_fewer_trained_layers_need_less(toy_config: Make) -> None:
    runtime = build_runtime(toy_config("method.rank=8"))
    every = frozenset(runtime.initial)
    top = frozenset(key for key in every if ".layer.0." not in key)
    assert told(runtime, 8, 16) > runtime.step_memory(2, every, 8, 16).step_bytes
    assert runtime.step_memory(0, top, 8, 16).peak_bytes < runtime.step_memory(0, every, 8, 16).peak_bytes


def test_lengths_are_measured_at_their_neighbours() -> None:
    assert neighbours(50, 120) == (32, 64)
    assert neighbours(64, 120) == (64, 64)
    assert neighbours(119, 120) == (96, 120)
    assert neighbours(120, 120) == (120, 120)
    assert neighbours(130, 120) == (130, 130)
    assert neighbours(20, 120) == (8, 32)
    assert neighbours(5, 120) == (5, 5)
    assert neighbours(12, 16) == (8, 16)


def test_what_was_measured_is_remembered(toy_config: Make) -> None:
    runtime = build_runtime(toy_config())
    first = runtime.step_memory(0, frozenset(runtime.initial), 8, 12)
    started = time.process_time()
    for _ in range(100):
        assert runtime.step_memory(0, frozenset(runtime.initial), 8, 12) == first
    assert time.process_time() - started < 0.5
    low, high = (runtime.step_memory(0, frozenset(runtime.initial), 8, one) for one in (8, 16))
    assert runtime.sizing.most_tokens < 16 or first == low.between(high, 0.5)


DIFFERENT = [
    ("method.rank=1",),
    ("method.target_modules=[query]",),
    ("head=freeze",),
    ("client.optimizer=sgd",),
    ("client.max_grad_norm=null",),
    ("model.dropout=0.3",),
    ("model.dtype=bfloat16",),
    ("privacy=example_level", "privacy.noise_multiplier=1", "privacy.delta=1e-5"),
]


def test_runs_of_the_same_steps_share_what_was_measured(toy_config: Make) -> None:
    first, again = (build_runtime(toy_config(f"seed={seed}", "client.lr=0.1")) for seed in (1, 2))
    assert first.sizing == again.sizing and hash(first.sizing) == hash(again.sizing)
    assert first.sizing is not again.sizing and first.train_flops is again.train_flops


@pytest.mark.parametrize("more", DIFFERENT, ids=lambda more: more[0])
def test_runs_of_other_steps_share_nothing(toy_config: Make, more: tuple[str, ...]) -> None:
    """Or one run would be predicted by another's figures."""
    first, other = build_runtime(toy_config()), build_runtime(toy_config(*more))
    assert first.sizing != other.sizing


def test_the_longest_text_of_a_client(toy_config: Make) -> None:
    runtime = build_runtime(toy_config())
    lengths = runtime.examples.task.lengths
    for client_id in range(6):
        held = runtime.examples.rows[runtime.examples.partition.indices(client_id)]
        assert runtime.longest(client_id) == lengths(held).max() <= runtime.sizing.most_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpeft.client.learning.MANY_CLIENTS", 5)
        assert longest_text(runtime, 0) == runtime.sizing.most_tokens


def test_telling_leaves_training_as_it_is(toy_config: Make) -> None:
    """Nothing of the run's model or of its random numbers is touched."""

    def train(runtime: Runtime) -> float:
        instruction = Instruction(tensors=runtime.initial, server_round=1, identity=runtime.identity, config={})
        return runtime.train(0, instruction, personal_state(runtime.config, 0), 0).result.loss

    untold, asked = build_runtime(toy_config("model.dropout=0.1")), build_runtime(toy_config("model.dropout=0.1"))
    state = torch.get_rng_state()
    asked.step_memory(0, frozenset(asked.initial), 8, 16)
    assert torch.equal(state, torch.get_rng_state())
    assert train(untold) == train(asked)


def test_dp_sgd_holds_a_gradient_of_each_example(language_model: Runtime) -> None:
    """Eight times the gradients of what trains, and nothing more where nothing trains."""
    runtime = language_model
    every, private = frozenset(runtime.initial), replace(runtime.sizing, per_example=True)
    plain = runtime.sizing.memory(0, every, 8, 16)
    assert private.memory(0, every, 8, 16).step_bytes == plain.step_bytes + 8 * plain.gradient_bytes
    assert private.memory(0, None, 8, 16) == runtime.sizing.memory(0, None, 8, 16)
    assert [holds_gradients(level) for level in LEVELS] == [False, True, True, False, False]
