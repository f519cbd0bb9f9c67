"""What the model says: greedy, from the prompts that the run's seed chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy_lm

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.client.sampling import continuations, sample_prompts


def make(folder: Path, kind: str, *more: str) -> Runtime:
    overrides = toy_lm.overrides(toy_lm.write_model(folder / kind, kind), toy_lm.write_data(folder / "data"))
    if any(one.startswith("method=") for one in more):
        overrides = [one for one in overrides if not one.startswith("method.")]
    return build_runtime(new_config({**cfg.compose([*overrides, *more]), "run_dir": str(folder / "run")}))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_continuations_are_those_of_greedy_generation(kind: str, tmp_path: Path) -> None:
    """The adapter's B is not zero, so that the tensors given matter."""
    runtime = make(tmp_path, kind)
    rng = np.random.default_rng(0)
    tensors = {key: rng.normal(size=value.shape).astype("float32") for key, value in runtime.initial.items()}
    prompts = [prompt for prompt, _ in sample_prompts(runtime, 4, 8)]
    found = continuations(runtime, tensors, prompts, 8)
    assert [one.tolist() for one in found] != [
        one.tolist() for one in continuations(runtime, runtime.initial, prompts, 8)
    ]
    with runtime.global_model(tensors) as model:
        for prompt, ours in zip(prompts, found, strict=True):
            ids = torch.tensor([prompt.tolist()])
            theirs = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=8,
                pad_token_id=3,
                eos_token_id=2,
            )[0, len(prompt) :]
            assert ours.tolist() == theirs.tolist()


def test_a_full_model_says_no_more_than_it_has_positions_for(tmp_path: Path) -> None:
    """GPT-2 here has 64 positions."""
    runtime = make(tmp_path, "gpt2")
    long = np.full(62, 10, dtype=np.int32)
    (said,) = continuations(runtime, runtime.initial, [long], 30)
    assert 1 <= len(said) <= 2


def test_prompts_are_held_out_and_the_same_each_time(tmp_path: Path) -> None:
    runtime = make(tmp_path, "llama")
    first, again = (sample_prompts(runtime, 3, 5) for _ in range(2))
    assert [p.tolist() for p, _ in first] == [p.tolist() for p, _ in again] and len(first) == 3
    held_out = [runtime.examples.eval_task.prompt(int(row), 5)[0].tolist() for row in runtime.examples.eval_rows]
    assert all(prompt.tolist() in held_out for prompt, _ in first)
    assert len(sample_prompts(runtime, 100, 5)) == len(held_out) == 12


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_stand_once_before_the_text(method: str, tmp_path: Path) -> None:
    """The n-th token said is the likeliest after the prompt and the n - 1 before it, read at once."""
    runtime = make(tmp_path, "llama", f"method={method}", "method.num_virtual_tokens=3")
    prompts = [prompt for prompt, _ in sample_prompts(runtime, 1, 5)]
    (said,) = continuations(runtime, runtime.initial, prompts, 5)
    with runtime.global_model(runtime.initial) as model, torch.inference_mode():
        ids = torch.tensor([[*prompts[0].tolist(), *said.tolist()]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    likeliest = logits[-len(said) - 1 : -1].argmax(-1)
    assert likeliest.tolist() == said.tolist()
