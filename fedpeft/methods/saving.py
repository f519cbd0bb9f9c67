"""Writing adapters as Hugging Face PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import DataError
from fedpeft.core.types import Tensors

if TYPE_CHECKING:
    from torch import nn

PREFIX = "base_model.model."
"""HF peft saves the tensors of wrapped models under this; those of injected adapters lack it."""


def saved_name(key: str) -> str:
    """Return the name under which HF peft saves a tensor."""
    return key if key.startswith(PREFIX) else PREFIX + key


def head_modules_of(keys: frozenset[str]) -> list[str]:
    """Return the sorted names of the head's modules from the names of its tensors, e.g. ``classifier``."""
    return sorted({key.removeprefix(PREFIX).split(".")[0] for key in keys})


def write_adapter(config: Any, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
    """Write an adapter that ``PeftModel.from_pretrained`` loads.

    Args:
        config: HF peft config of the method; base model, task type and the head's modules are filled in here.
        tensors: what to write, by the names in which HF peft loads them.
        folder: where to write; made if missing.
        base_model: folder or hub id of the base model.
        head_keys: names of the model's head; those among ``tensors`` are saved as ``modules_to_save``. A model without
            a head is a causal language model.
    """
    from safetensors.numpy import save_file

    heads = head_modules_of(head_keys & tensors.keys())
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    if heads:
        config.task_type = "SEQ_CLS"
        config.modules_to_save = heads
    elif not head_keys:
        config.task_type = "CAUSAL_LM"
    entries = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(entries, indent=2, default=str) + "\n")
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def skeleton(base_model: str, head_keys: frozenset[str]) -> nn.Module:
    """Return a model of the base model's shape without its weights (torch's meta device).

    It answers what an adapter's config must say about the architecture, such as the layout of the weights.

    Args:
        base_model: folder or hub id.
        head_keys: names of the model's classification head; empty for a causal language model.

    Raises:
        DataError: there is no config that transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(base_model)
        with torch.device("meta"):
            make: Any = AutoModelForSequenceClassification if head_keys else AutoModelForCausalLM
            model: nn.Module = make.from_config(config)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the adapter's base model {base_model} cannot be read: {reason} (set model.path)") from error
    return model
