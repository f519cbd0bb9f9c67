"""Decoders and conversations so small that a whole federation takes a second.

A 2-layer Llama or GPT-2 with random weights, a word-level tokenizer with a ChatML template, and conversations in which
the assistant repeats the user's words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"w{i}" for i in range(40)]
SPEAKERS = ("ann", "ben", "cai", "dee", "eve")
SHARES = (8, 4, 4, 3, 1)
"""Of twenty conversations, how many each speaker owns."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE, *, pad: bool = True) -> Any:
    """Return the tokenizer: words are split at white space, each is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<pad>"]
    vocabulary = {word: i for i, word in enumerate([*special, "system", "user", "assistant", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        **({"pad_token": "<pad>"} if pad else {}),
    )
    fast.chat_template = template
    return fast


def make_model(kind: str = "llama", *, hidden: int = 32, layers: int = 2) -> Any:
    """Return a random ``llama`` or ``gpt2`` with a language-modelling head."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    size = 7 + len(WORDS)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "gpt2":
            shape = {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": 64}
            return GPT2LMHeadModel(GPT2Config(vocab_size=size, **shape, **ids))
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                pad_token_id=3,
                tie_word_embeddings=True,
                **ids,
            )
        )


def write_model(folder: Path, kind: str = "llama") -> Path:
    """Write model and tokenizer as Hugging Face folders are; GPT-2's, like the real one, has no padding token."""
    make_model(kind).save_pretrained(folder)
    make_tokenizer(pad=kind != "gpt2").save_pretrained(folder)
    return folder


def conversations(rows: int = 60) -> list[dict[str, Any]]:
    """Return rows of ``messages`` and ``group``."""
    rng = np.random.default_rng(0)
    owners = [name for name, share in zip(SPEAKERS, SHARES, strict=True) for _ in range(share)]
    made = []
    for i in range(rows):
        messages = []
        for _ in range(int(rng.integers(1, 4))):
            said = " ".join(WORDS[j] for j in rng.integers(0, len(WORDS), size=rng.integers(1, 4)))
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
        made.append({"messages": messages, "group": owners[i % len(owners)]})
    return made


def write_data(folder: Path, rows: int = 60) -> Path:
    """Write ``train.jsonl``: columns messages and group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(rows)))
    return folder


def overrides(model: Path, data: Path) -> list[str]:
    """Return the command-line overrides of a federation of three speakers on the toy model and data."""
    return [
        "model=hub", f"model.path={model}", "model.dtype=float32", "model.max_length=24",
        "task=causal_lm", f"task.path={data}", "task.group_column=group", "task.held_out=12",
        "partition=natural", "num_clients=3", "cohort_size=2", "rounds=2", "method.rank=2", "method.alpha=4",
        "client.local_steps=3", "client.batch_size=4", "client.lr=0.01", "evaluate.shards=3", "evaluate.batch_size=4",
        "evaluate.clients_every=2", "engine.workers=2", "display=none", "report=true",
    ]  # fmt: skip
