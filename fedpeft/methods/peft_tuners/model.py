"""Tuners: where HF peft puts the layers into a model, and what it saves of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from fedpeft.methods.peft_tuners.layer import BottleneckLayer, CompacterLayer, PHMLinear
from fedpeft.methods.placement import target_pattern
from fedpeft.methods.targets import LINEAR_TYPES

RULE = "compacter_rule"
"""Name under which Compacter's shared matrices are saved, once for all layers."""
_PREFIX = "base_model.model."


class BottleneckModel(BaseTuner):
    """Puts bottleneck adapters behind the modules that the config targets."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = target_pattern(model_config.get("model_type", ""), peft_config.placement)
        if peft_config.target_modules is None:
            raise ValueError(f"a {model_config.get('model_type')} model is not known here, set target_modules")
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        rule = self._rule(peft_config, adapter_name, target)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, rule)
            return
        if type(target).__name__ not in LINEAR_TYPES:
            raise ValueError(f"{current_key} is a {type(target).__name__}, adapters follow {', '.join(LINEAR_TYPES)}")
        layer = self.tuner_layer_cls(target)
        layer.update_layer(adapter_name, peft_config, rule)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _rule(self, config: Any, adapter_name: str, target: nn.Module) -> nn.Parameter | None:
        return None


class CompacterModel(BottleneckModel):
    """Puts Compacter's adapters behind the modules that the config targets.

    The matrices A_i are one parameter, registered in every projection. They are saved once, as ``compacter_rule``.
    Loading with ``low_cpu_mem_usage=True`` gives each projection a copy of its own: equal outputs, but train a model
    that was loaded without it.
    """

    prefix = "compacter_"
    tuner_layer_cls = CompacterLayer

    def _rule(self, config: Any, adapter_name: str, target: nn.Module) -> nn.Parameter:
        for _, layer in _layers(self.model, adapter_name):
            return cast(PHMLinear, layer.adapters()[0][adapter_name]).rule
        weight = cast(torch.Tensor, target.weight)
        return PHMLinear.new_rule(config.phm_dim, weight.device)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        copies = _rule_keys(model, adapter_name)
        kept = {key: value for key, value in found.items() if key not in copies}
        prefix = _PREFIX if copies[0].startswith(_PREFIX) else ""
        return kept | {f"{prefix}{RULE}.{adapter_name}": found[copies[0]]}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        rules = [value for key, value in state_dict.items() if key.removeprefix(_PREFIX) == RULE]
        others = {key: value for key, value in state_dict.items() if key.removeprefix(_PREFIX) != RULE}
        mapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, others
        )
        return mapped | {key: rule for rule in rules for key in _rule_keys(model, adapter_name)}


def _layers(model: nn.Module, adapter_name: str) -> list[tuple[str, CompacterLayer]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, CompacterLayer) and adapter_name in module.adapters()[0]
    ]


def _rule_keys(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the model's own names of the shared matrices, one in every projection."""
    return [
        f"{name}.{side}.{adapter_name}.rule"
        for name, layer in _layers(model, adapter_name)
        for side in layer.adapter_layer_names
    ]
