"""What the methods with virtual tokens share: argument checks, attaching, and saving in HF peft's or our own form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.heads import head_parameters
from fedpeft.methods.inject import make_tunable
from fedpeft.methods.saving import PREFIX, head_modules_of, write_adapter

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

MAX_VIRTUAL_TOKENS = 1000


def count_problems(name: str, value: object, most: int = MAX_VIRTUAL_TOKENS) -> list[str]:
    """Return what is wrong with a setting that counts something, in at most one line."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return []
    return [f"{name} must be in 1..{most}, got {value!r} (set method.{name})"]


def attach_tokens(model: Any, name: str, tokens: Any, head: str) -> Tunable:
    """Freeze the model, hang the virtual tokens into it and name what trains.

    Args:
        model: the base model, changed in place.
        name: ``prefix`` or ``prompt``, the name under which they hang.
        tokens: the module that holds them; see ``fedpeft.methods.peft_tuners``.
        head: ``share``, ``local`` or ``freeze``.
    """
    heads = head_parameters(model)
    model.requires_grad_(False)
    # The base may be bfloat16, and torch makes new parameters in whatever dtype is the default.
    tokens.float()
    model.add_module(name, tokens)
    tokens.insert(model)
    adapter = {f"{PREFIX}{name}.{key}": value for key, value in tokens.named_parameters()}
    return make_tunable(model, adapter, heads, head)


def fill(name: str, tokens: nn.Module, tensors: Tensors) -> None:
    """Copy what travels into a module of virtual tokens of the same sizes."""
    import torch

    state = {key.removeprefix(f"{PREFIX}{name}."): value for key, value in tensors.items()}
    tokens.load_state_dict({key: torch.from_numpy(state[key].copy()) for key, _ in tokens.named_parameters()})


def write_hf(
    config: Any, prompt: np.ndarray, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]
) -> None:
    """Write virtual tokens as one of HF peft's own kinds.

    Args:
        config: HF peft's config of the kind.
        prompt: ``prompt_embeddings``, (num_virtual_tokens, width).
        tensors: what travels; the head among it is written too.
        folder: where to write.
        base_model: folder or hub id of the base model.
        head_keys: names of the model's head.
    """
    heads = {key: tensors[key] for key in sorted(head_keys & tensors.keys())}
    config.task_type = "SEQ_CLS" if head_keys else "CAUSAL_LM"
    config.modules_to_save = head_modules_of(frozenset(heads)) or None
    # Prompts belong to the outermost wrapper in HF peft, whose base model is the model itself.
    entries = {"base_model." + key.removeprefix(PREFIX): value for key, value in heads.items()}
    write_adapter(config, entries | {"prompt_embeddings": prompt}, folder, base_model=base_model, head_keys=head_keys)


def write_own(
    kind: str,
    num_virtual_tokens: int,
    values: Mapping[str, np.ndarray],
    tensors: Tensors,
    folder: Path,
    *,
    base_model: str,
    head_keys: frozenset[str],
) -> None:
    """Write virtual tokens as our own kind, which loads after ``import fedpeft.methods.peft_tuners``.

    Args:
        kind: ``prefix`` or ``prompt``.
        num_virtual_tokens: how many.
        values: the tokens by their names within the module.
        tensors: what travels; the head among it is written too.
        folder: where to write.
        base_model: folder or hub id of the base model.
        head_keys: names of the model's head.
    """
    from fedpeft.methods.peft_tuners.virtual_tokens import VirtualTokensConfig

    heads = {key: tensors[key] for key in sorted(head_keys & tensors.keys())}
    entries = {f"{PREFIX}{kind}.{key}": value for key, value in values.items()}
    config = VirtualTokensConfig(kind=kind, num_virtual_tokens=num_virtual_tokens)
    write_adapter(config, entries | heads, folder, base_model=base_model, head_keys=head_keys)
