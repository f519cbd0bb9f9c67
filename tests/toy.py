"""A model and data so small that a whole federation takes a second.

A 2-layer BERT with random weights, and texts whose label is a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"w{i}" for i in range(60)]
GROUPS = ("north", "south", "east", "west")


def write_model(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """Write a random BERT classifier's base and its word-level tokenizer, as Hugging Face folders are."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def write_data(folder: Path, rows: int = 400) -> Path:
    """Write ``train.jsonl``: columns text, label, group; positive texts hold more of the first half of the words."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(rows):
        label = int(rng.integers(2))
        half = rng.integers(0, 30, size=rng.integers(4, 12)) + (0 if label else 30)
        lines.append(
            {"text": " ".join(WORDS[j] for j in half), "label": ("bad", "good")[label], "group": GROUPS[i % 4]}
        )
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def alike(folder: Path, words: int) -> list[str]:
    """Write a model and data whose texts are all of so many words; return the overrides of two clients on them."""
    data = write_data(folder / "data", rows=120)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    lines = [{**row, "text": " ".join((row["text"].split() * 3)[:words])} for row in rows]
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["task.held_out=20", "num_clients=2", "cohort_size=2"]
    return [*overrides(write_model(folder / "model"), data), *few]


def with_method(toy: list[str], folder: Path, method: str, *more: str) -> dict[str, Any]:
    """Return the plain config of a new toy run in ``folder`` with another method, none of LoRA's settings left.

    Args:
        toy: what the fixture of this name gives.
        folder: where the run would be written.
        method: name of the method's config.
        more: further overrides.
    """
    from fedpeft import config as cfg
    from fedpeft.cli.launch import new_config

    kept = [one for one in toy if not one.startswith("method.")]
    return new_config({**cfg.compose([*kept, f"method={method}", *more]), "run_dir": str(folder / "run")})


def refusals(config: dict[str, Any]) -> list[str]:
    """Return what the check of a config finds wrong with it, nothing where it lets it through."""
    from fedpeft import config as cfg
    from fedpeft.core.errors import ConfigError

    try:
        cfg.check(config)
    except ConfigError as error:
        return list(error.problems) or [str(error)]
    return []


def overrides(model: Path, data: Path) -> list[str]:
    """Return the command-line overrides of a federation of six clients on the toy model and data."""
    return [
        "model=hub", f"model.path={model}", "model.dtype=float32", "model.max_length=16",
        "task=text_classification", f"task.path={data}", "task.group_column=group", "task.held_out=80",
        "partition=iid", "num_clients=6", "cohort_size=4", "rounds=3", "method.rank=2", "method.alpha=4",
        "client.local_steps=3", "client.batch_size=8", "client.lr=0.01", "evaluate.shards=3", "evaluate.batch_size=16",
        "engine.workers=2", "display=none", "report=false",
    ]  # fmt: skip
