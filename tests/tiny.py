"""Random two-layer models of five architectures, and a Llama so small that attention is computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("gpt2", "llama")


def config(family: str) -> Any:
    """Return the config: vocabulary 64, hidden size 32, 2 layers, 4 heads (Llama: 2 key-value heads), 3 labels."""
    import transformers

    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "pad_token_id": 0, "num_labels": 3,
    }  # fmt: skip
    distil = {"vocab_size": 64, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "num_labels": 3}
    gpt2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "num_labels": 3}
    return {
        "bert": lambda: transformers.BertConfig(**shape, max_position_embeddings=64),
        "roberta": lambda: transformers.RobertaConfig(**shape, max_position_embeddings=66),
        "distilbert": lambda: transformers.DistilBertConfig(**distil, max_position_embeddings=64),
        "gpt2": lambda: transformers.GPT2Config(**gpt2, pad_token_id=0, bos_token_id=1, eos_token_id=1),
        "llama": lambda: transformers.LlamaConfig(**shape, num_key_value_heads=2),
    }[family]()


def write(folder: Path, family: str, *, causal: bool = False) -> str:
    """Write a random classifier, or causal language model, and return its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        auto.from_config(config(family)).save_pretrained(folder)
    return str(folder)


def write_all(root: Path) -> dict[tuple[str, bool], str]:
    """Write a classifier of each family and a causal language model of each decoder; return folders by both."""
    made = {(family, False): write(root / family, family) for family in (*ENCODERS, *DECODERS)}
    return made | {(family, True): write(root / f"{family}-lm", family, causal=True) for family in DECODERS}


def load(folder: str, *, causal: bool = False, dtype: str = "float32") -> Any:
    """Load what ``write`` wrote, without dropout."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    return auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def texts() -> dict[str, Any]:
    """Return four texts of 7, 4, 5 and 7 tokens, padded on the right with 0."""
    import torch

    ids = torch.randint(4, 60, (4, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row, length in ((1, 4), (2, 5)):
        ids[row, length:], mask[row, length:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def shift(tensors: Any, scale: float = 0.3) -> None:
    """Move live tensors as training would."""
    import torch

    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)


def save(method: Any, tunable: Any, folder: Path, base_model: str) -> str:
    """Save what is attached, moved as by training, as an adapter; return the kind that its config names."""
    from fedpeft.methods.base import extract_tensors

    shift(tunable.trainable)
    method.save(extract_tensors(tunable.shared), folder, base_model=base_model, head_keys=tunable.head_keys)
    return str(json.loads((folder / "adapter_config.json").read_text())["peft_type"])


def assert_padding_changes_nothing(model: Any) -> None:
    """Hold a short text's logits in a padded batch against those that it has alone."""
    import torch

    batch = texts()
    with torch.no_grad():
        alone = model(**{key: value[1:2, :4] for key, value in batch.items()}).logits
        torch.testing.assert_close(model(**batch).logits[1:2], alone, rtol=1e-5, atol=1e-5)


def assert_generation_is_reading(model: Any, *, use_cache: bool) -> None:
    """Hold the scores of each generated token against a plain forward pass over all tokens before it."""
    import torch

    ids = texts()["input_ids"][:1]
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False,
        use_cache=use_cache, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    with torch.no_grad():
        every = model(input_ids=out.sequences, attention_mask=torch.ones_like(out.sequences)).logits
    torch.testing.assert_close(torch.stack(out.logits, dim=1), every[:, 6:-1], rtol=1e-4, atol=1e-4)


def by_hand(heads: int = 1) -> Any:
    """Return a one-layer Llama of width 2 whose only word is (1, 1) and whose attention passes values on.

    Keys and values are their inputs (identity), queries are zero, so that attention weighs every token alike. The
    word is its own RMS norm: its mean square is 1.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=heads,
            num_key_value_heads=1, head_dim=2, pad_token_id=None, rms_norm_eps=1e-12, bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        attention = model.model.layers[0].self_attn
        model.model.embed_tokens.weight.fill_(1)
        attention.q_proj.weight.zero_()
        for module in (attention.k_proj, attention.v_proj):
            module.weight.copy_(torch.eye(2))
        attention.o_proj.weight.copy_(torch.eye(2).repeat(1, heads))
    return model


def attended(model: Any, length: int = 1) -> Any:
    """Return what the attention of ``by_hand``'s model hands to its output projection, (tokens, heads * 2)."""
    import torch

    seen: list[Any] = []
    attention = model.model.layers[0].self_attn
    attention = getattr(attention, "model", attention)
    hook = attention.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long), attention_mask=torch.ones(1, length))
    hook.remove()
    return seen[0][0]
