"""What a language model says: held-out prompts, and how a model goes on from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpeft.client.runtime import Runtime
from fedpeft.client.trainer import autocast
from fedpeft.core.seeds import rng
from fedpeft.core.types import Tensors
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.models import max_tokens
from fedpeft.tasks.placement import device_of


def sample_prompts(runtime: Runtime, count: int, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return prompts out of the server's held-out split and what follows them there, as token ids.

    Args:
        runtime: the run; its seed chooses.
        count: how many prompts, at most as many as there are rows.
        most: tokens of what follows.
    """
    task, rows = runtime.examples.eval_task, runtime.examples.eval_rows
    if not isinstance(task, CausalLM):
        return []
    chosen = rng(runtime.seed, "samples").choice(rows, size=min(count, len(rows)), replace=False)
    return [task.prompt(int(row), most) for row in chosen]


def continuations(runtime: Runtime, tensors: Tensors, prompts: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """Return what the global model says after each prompt, the likeliest token each time.

    The whole text is read again for each token. Keeping keys and values would be faster, but virtual tokens, which some
    methods put before the text, would come again with each one.

    Args:
        runtime: the run.
        tensors: what ``FedPeft.model_tensors`` returns.
        prompts: token ids.
        most: new tokens; fewer where the end of the text or turn comes first, or the model has no positions left.
    """
    import torch

    tokenizer = getattr(runtime.examples.eval_task, "tokenizer", None)
    end = getattr(tokenizer, "eos_token_id", None)
    with runtime.global_model(tensors) as model, torch.inference_mode(), autocast(runtime.dtype, device_of(model)):
        positions = max_tokens(model) or 10**9
        return [_go_on(model, prompt.tolist(), min(most, positions - len(prompt)), end) for prompt in prompts]


def _go_on(model: Any, ids: list[int], most: int, end: int | None) -> np.ndarray:
    import torch

    first = len(ids)
    for _ in range(most):
        text = torch.tensor([ids], device=device_of(model))
        logits = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
        ids = [*ids, int(logits[0, -1].argmax())]
        if ids[-1] == end:
            break
    return np.asarray(ids[first:], dtype=np.int32)
