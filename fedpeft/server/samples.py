"""``samples.json``: what a language model says before and after the run."""

from __future__ import annotations

from pathlib import Path

from fedpeft.client.runtime import Runtime
from fedpeft.client.sampling import continuations, sample_prompts
from fedpeft.core.types import Tensors
from fedpeft.server.files import write_json
from fedpeft.tasks.causal_lm import CausalLM

SAMPLES = "samples.json"
NEW_TOKENS = 30


def write_samples(run_dir: Path, runtime: Runtime, final: Tensors) -> None:
    """Let the initial and the final model go on from the same held-out prompts; nothing for a task without samples.

    The file holds ``{"new_tokens": n, "samples": [{"prompt", "reference", "initial", "final"}]}``, texts without
    special tokens; ``reference`` is what a person said there.

    Args:
        run_dir: the run directory.
        runtime: the run.
        final: the model's tensors after the last round, as ``FedPeft.model_tensors`` returns them.
    """
    task = runtime.examples.eval_task
    prompts = sample_prompts(runtime, int(runtime.config["task"].get("samples", 0)), NEW_TOKENS)
    if not prompts or not isinstance(task, CausalLM):
        return
    before, after = (
        continuations(runtime, tensors, [prompt for prompt, _ in prompts], NEW_TOKENS)
        for tensors in (runtime.initial, final)
    )
    names = ("prompt", "reference", "initial", "final")
    samples = [
        {
            name: task.tokenizer.decode(ids, skip_special_tokens=True).strip()
            for name, ids in zip(names, texts, strict=True)
        }
        for texts in zip(*zip(*prompts, strict=True), before, after, strict=True)
    ]
    write_json(run_dir / SAMPLES, {"new_tokens": NEW_TOKENS, "samples": samples})
