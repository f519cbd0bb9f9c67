"""Attaching an HF peft config of the kind that is injected beside modules, for every method that is one."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Tensors
from fedpeft.methods.base import HEAD_MODES, Tunable
from fedpeft.methods.heads import head_parameters
from fedpeft.methods.saving import saved_name, skeleton, write_adapter

if TYPE_CHECKING:
    import torch
    from torch import nn


class OneConfig(ABC):
    """A method that is one HF peft config, complete for its architecture: attached by it and saved with it."""

    @abstractmethod
    def _config(self, model: nn.Module) -> Any:
        """Return the config for this architecture."""

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Put the adapter into the model; see ``Method.attach``."""
        return attach_config(self._config(model), model, head)

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        config = self._config(skeleton(base_model, head_keys))
        write_adapter(config, tensors, folder, base_model=base_model, head_keys=head_keys)


def attach_config(
    config: Any, model: nn.Module, head: str, *, rank: int | None = None, constants: tuple[str, ...] = ()
) -> Tunable:
    """Freeze the model, inject the adapter that an HF peft config describes, and name what trains.

    Args:
        config: an HF peft config, complete for this architecture.
        model: the base model, changed in place.
        head: ``share``, ``local`` or ``freeze``.
        rank: LoRA rank, None for methods without one.
        constants: parts of names of what the adapter computes with but never trains; made float32 and frozen.

    Raises:
        ConfigError: an unknown head mode, or HF peft refuses the config for this model.
    """
    from peft import get_peft_model_state_dict, inject_adapter_in_model

    check_head(head)
    heads = head_parameters(model)
    model.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            # What HF peft has to say here (it has not measured a layer, it changes an option) concerns no user.
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"HF peft cannot attach {_kind(config)} to {type(model).__name__}: {reason}") from error
    use_float32(model)
    for name, value in model.named_parameters():
        if set(name.split(".")) & set(constants):
            value.data = value.data.float()
            value.requires_grad_(False)
    # keep_vars: the parameters themselves, not detached copies, because an optimiser must see their gradients.
    live = get_peft_model_state_dict(model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False)
    adapter = {saved_name(key): value for key, value in live.items() if value.requires_grad}
    _check_complete(config, model, live, adapter)
    return make_tunable(model, adapter, heads, head, rank=rank)


def _check_complete(
    config: Any, model: nn.Module, live: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor]
) -> None:
    """Refuse an adapter that is more, or other, than the trained values that would travel and be saved."""
    kind = _kind(config)
    if fixed := sorted({key.split(".")[-1] for key, value in live.items() if not value.requires_grad}):
        raise ConfigError(
            f"{kind} is not for federated training: it keeps {', '.join(fixed)} fixed, which clients do not exchange "
            "(choose another method)"
        )
    named = {id(value) for value in adapter.values()}
    if any(value.requires_grad and id(value) not in named for value in model.parameters()):
        raise ConfigError(f"{kind} trains parameters that HF peft does not save (choose another method)")


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def make_tunable(
    model: nn.Module,
    adapter: Mapping[str, torch.Tensor],
    heads: Mapping[str, torch.Tensor],
    head: str,
    *,
    rank: int | None = None,
) -> Tunable:
    """Join an adapter's tensors with the head's, which become float32 and train unless ``head`` is ``freeze``.

    Args:
        model: the model, everything but the adapter frozen.
        adapter: live tensors of the adapter by travelling name.
        heads: live tensors of the classification head by travelling name, {} for none.
        head: ``share``, ``local`` or ``freeze``.
        rank: LoRA rank, None for methods without one.
    """
    for value in heads.values():
        value.requires_grad_(head != "freeze")
        value.data = value.data.float()
    shared = {**adapter, **(heads if head == "share" else {})}
    return Tunable(
        model=model,
        shared={key: shared[key] for key in sorted(shared)},
        local={key: heads[key] for key in sorted(heads)} if head == "local" else {},
        head_keys=frozenset(heads),
        rank=rank,
    )


def check_head(head: str) -> None:
    """Refuse a head mode that is none.

    Raises:
        ConfigError: it is not one of ``share``, ``local``, ``freeze``.
    """
    if head not in HEAD_MODES:
        raise ConfigError(f"head must be one of {', '.join(HEAD_MODES)}, got {head!r} (set head)")


def use_float32(model: nn.Module) -> None:
    """Keep what trains in float32 beside a bfloat16 base.

    Under autocast the products still run in bfloat16, and peft must not cast their input up first.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - torch types attributes as tensors
