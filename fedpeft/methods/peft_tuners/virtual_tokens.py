"""Saved prefixes and prompts for models on which HF peft's own kinds do not give the outputs that were trained.

HF peft's prefix tuning needs a cache, which DistilBERT lacks; its prompts let a decoder's classifier read the padding
behind a text; and it loads no prompt for a classifier whose head was not saved with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from fedpeft.methods.peft_tuners.key_values import Prefix
from fedpeft.methods.peft_tuners.prompts import Prompt

KINDS = {"prefix": Prefix, "prompt": Prompt}
"""Module by the name under which it hangs in the model."""


class VirtualTokensType(str, Enum):  # noqa: UP042 - as peft's own PeftType, whose printed form its status report takes apart
    """Name of this kind of adapter, beside those of peft's ``PeftType``."""

    VIRTUAL_TOKENS = "VIRTUAL_TOKENS"


@dataclass
class VirtualTokensConfig(PeftConfig):
    """Virtual tokens in front of every text.

    Attributes:
        kind: ``prefix`` for keys and values in every layer, ``prompt`` for embeddings.
        num_virtual_tokens: how many.
        modules_to_save: modules that train whole, e.g. the classification head.
    """

    kind: str = "prefix"
    num_virtual_tokens: int = 16
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = VirtualTokensType.VIRTUAL_TOKENS


class VirtualTokensModel(nn.Module):
    """Puts virtual tokens into a model; one adapter at a time.

    Args:
        model: the base model, changed in place.
        peft_config: the config by the adapter's name.
        adapter_name: that name.
        low_cpu_mem_usage: accepted as from every tuner; nothing here is large.
    """

    prefix = "virtual_tokens_"

    def __init__(
        self,
        model: Any,
        peft_config: dict[str, VirtualTokensConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        super().__init__()
        config = peft_config[adapter_name]
        self.model = model
        self.peft_config = peft_config
        self.active_adapters = [adapter_name]
        model.requires_grad_(False)
        self._tokens = KINDS[config.kind](model, config.num_virtual_tokens).to(model.device)
        model.add_module(config.kind, self._tokens)
        self._tokens.insert(model)
        self._tokens.requires_grad_(not config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, virtual tokens in front."""
        return self.model(*args, **kwargs)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make the one adapter trainable or not.

        Raises:
            ValueError: there is no adapter of that name.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"there is no adapter {adapter_name}, only {', '.join(self.peft_config)}")
        self._tokens.requires_grad_(not inference_mode)

    def enable_adapter_layers(self) -> None:
        """Put the virtual tokens in front again."""
        self._tokens.enabled = True

    def disable_adapter_layers(self) -> None:
        """Run the base model as it is."""
        self._tokens.enabled = False

    def __getattr__(self, name: str) -> Any:
        """Look up what this module lacks in the model, which language models' ``generate`` needs."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: VirtualTokensConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        roots = (f"base_model.model.{config.kind}.", f"{config.kind}.")
        return {key: value for key, value in state_dict.items() if key.startswith(roots)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: VirtualTokensConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return state_dict
