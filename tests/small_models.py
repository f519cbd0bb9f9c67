"""Random classifiers of three layers of each architecture, and texts for them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from fedpeft.tasks.text_classification import TextClassification

LAYERS = 3
KINDS = ("bert", "gpt2", "llama")


def model_of(kind: str) -> nn.Module:
    """A random classifier of three layers, in evaluation mode."""
    import transformers as hf

    sizes = {"vocab_size": 64, "num_labels": 2, "pad_token_id": 0}
    bert = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    config, family = {
        "bert": (hf.BertConfig(**sizes, **bert), hf.BertForSequenceClassification),
        "gpt2": (hf.GPT2Config(**sizes, n_embd=32, n_layer=LAYERS, n_head=4), hf.GPT2ForSequenceClassification),
        "llama": (hf.LlamaConfig(**sizes, **bert), hf.LlamaForSequenceClassification),
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family(config).eval()


def batch_of(*lengths: int, padding: int = 0) -> dict[str, torch.Tensor]:
    """Random texts of these lengths, padded to the longest and then by ``padding`` more tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(lengths), max(lengths) + padding, dtype=torch.int64)
    for i, length in enumerate(lengths):
        ids[i, :length] = torch.randint(4, 64, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.arange(len(lengths)) % 2}


def labelled_texts(count: int, *, longest: int, shortest: int, labels: int) -> TextClassification:
    """So many random texts whose lengths lie between these, each with one of so many labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest + 1, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TextClassification(
        tokens=rng.integers(4, 60, size=offsets[-1]).astype(np.int32), types=None, offsets=offsets,
        labels=rng.integers(labels, size=count), groups=np.zeros(count, np.int64), num_groups=1, pad_id=0,
    )  # fmt: skip


def wrapped(kind: str, name: str) -> nn.Module:
    """The same in Hugging Face peft's ``lora``, ``prefix`` or ``prompt`` tuning."""
    import peft

    config = {
        "lora": lambda: peft.LoraConfig(task_type="SEQ_CLS"),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5),
        "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5),
    }[name]()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        return peft.get_peft_model(model_of(kind), config)
