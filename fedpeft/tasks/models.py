"""Loading the frozen base model."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.tasks.quantised import is_quantised as is_quantised
from fedpeft.tasks.quantised import loading_options, settle, stored_state
from fedpeft.tasks.quantised import plain_config as plain_config

if TYPE_CHECKING:
    from torch import nn

POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
DTYPES = ("auto", "float32", "bfloat16")
_DRAWN = "fedpeft_drawn"
"""Attribute of a loaded model: the names of the parameters that its checkpoint lacks."""


def resolve_dtype(dtype: str) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` takes bfloat16 where the CPU multiplies it in hardware.

    The choice follows CPU flags (avx512_bf16 or amx_bf16 on x86-64, bf16 on aarch64) rather than a timing, so that it
    is the same every time.

    Raises:
        ConfigError: another name.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r} (set model.dtype)")
    if dtype != "auto":
        return dtype
    return "bfloat16" if _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpuinfo.is_file():
        return set()
    lines = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    return next((set(value.split()) for key, value in lines if key.strip().lower() in ("flags", "features")), set())


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a local folder or hub id."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer at {path}: {_first_line(error)} (set model.path)") from error


def load_classifier(
    path: str, *, num_labels: int, dtype: str, dropout: float | None, seed: int, revision: str | None = None
) -> nn.Module:
    """Return a sequence classifier on the base model, with a seeded new head.

    Args:
        path: local folder or hub id.
        num_labels: size of the head.
        dtype: ``float32`` or ``bfloat16`` of the base; where it is stored in int8 or nf4, of its other weights and of
            the products, for which single matrices are dequantised.
        dropout: probability for every dropout of the base, None to leave them as the checkpoint has them.
        seed: seeds whatever weights the checkpoint lacks.
        revision: hub revision.

    Raises:
        DataError: nothing loadable is there.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(
        AutoModelForSequenceClassification,
        path,
        dtype=dtype,
        dropout=dropout,
        seed=seed,
        revision=revision,
        num_labels=num_labels,
    )


def load_causal_lm(
    path: str, *, dtype: str, dropout: float | None, seed: int, revision: str | None = None
) -> nn.Module:
    """Return a causal language model; arguments and errors are those of `load_classifier`."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, dtype=dtype, dropout=dropout, seed=seed, revision=revision)


def empty_twin(
    model_config: Any, task_kind: str, *, attention: str = "eager", dtype: str = "float32", dropout: float | None = None
) -> nn.Module:
    """Return a float model of the same architecture with new weights, to count operations and measure memory on.

    Args:
        model_config: the config of a loaded model, quantised or not.
        task_kind: ``classification`` or ``causal_lm``.
        attention: transformers' name of the attention; ``eager`` is the one whose operations torch counts.
        dtype: ``float32`` or ``bfloat16``.
        dropout: as in `load_classifier`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM if task_kind == "causal_lm" else AutoModelForSequenceClassification
    twin: nn.Module = kind.from_config(
        plain_config(model_config), attn_implementation=attention, dtype=getattr(torch, dtype)
    )
    if dropout is not None:
        set_dropout(twin, dropout)
    return twin


def _load(
    kind: Any, path: str, *, dtype: str, dropout: float | None, seed: int, revision: str | None, **settings: Any
) -> nn.Module:
    """Load a model of a transformers auto class, float or quantised; ``settings`` go into its config."""
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, **settings)
        options = loading_options(config, path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, loading = kind.from_pretrained(
                path,
                config=config,
                dtype=getattr(torch, dtype),
                revision=revision,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise DataError(f"no model at {path}: {_first_line(error)} (set model.path)") from error
    settle(model, dtype)
    if dropout is not None:
        set_dropout(model, dropout)
    setattr(model, _DRAWN, frozenset(loading["missing_keys"]))
    loaded: nn.Module = model
    return loaded


def max_tokens(model: nn.Module) -> int | None:
    """Return how many tokens the model has learned positions for, None where it computes them (rotary embeddings)."""
    from torch import nn

    for name, module in model.named_modules():
        if name.split(".")[-1] in POSITION_TABLES and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind its padding index.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout in the model, attention's too, this probability."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def hash_model(model: nn.Module) -> str:
    """Return the sha256 of names, shapes and values of every parameter, scales of quantised ones included.

    Equal on two ends that hold the same base model, whatever their processors: the values of a head that the checkpoint
    lacks, and that was drawn here, are left out. Normal numbers of the same seed differ between x86-64 and ARM64 in
    their last bits.
    """
    import torch

    drawn: frozenset[str] = getattr(model, _DRAWN, frozenset())
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if name in drawn:
            continue
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().data)
    for name, about, values in stored_state(model):
        digest.update(f"{name}{about}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
