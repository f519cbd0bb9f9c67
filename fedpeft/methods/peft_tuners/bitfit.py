"""BitFit as an HF peft method: biases that train beside the frozen ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import nn


class BiasType(str, Enum):  # noqa: UP042 - as peft's own PeftType
    """Name of the method, beside those of peft's ``PeftType``."""

    BITFIT = "BITFIT"


@dataclass
class BitFitConfig(PeftConfig):
    """BitFit.

    Attributes:
        target_modules: names of modules whose bias trains, None for every module that has one.
        exclude_modules: names of modules whose bias does not.
        modules_to_save: modules that train whole, e.g. the classification head.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = BiasType.BITFIT


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A module (linear, ``Conv1D``, normalisation) that runs with another bias.

    Args:
        base_layer: the module, kept as it is.
    """

    adapter_layer_names = ("bitfit_bias",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict()
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add a bias that starts as the module's own, in float32."""
        own = cast(torch.Tensor, self.get_base_layer().bias)
        self.bitfit_bias[adapter_name] = nn.Parameter(own.detach().float().clone())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with the active bias."""
        active = [name for name in self.active_adapters if name in self.bitfit_bias]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(*args, **kwargs)
        if len(active) > 1:
            raise ValueError(f"a module has one bias at a time, got adapters {', '.join(active)}")
        values = {"bias": self.bitfit_bias[active[0]]}
        own = cast(torch.Tensor, self.base_layer.bias)
        if own.device.type == "meta" or not torch.is_autocast_enabled(own.device.type):
            values["bias"] = values["bias"].to(own.dtype)
        elif self.weight.ndim == 1:
            # Autocast brings the operands of products to one dtype, but a normalisation wants scale and bias alike.
            values["weight"] = self.weight.float()
        return torch.func.functional_call(self.base_layer, values, args, kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put an adapter's bias into the module; the module's own one waits in its place."""
        for name in check_adapters_to_merge(self, adapter_names)[:1]:
            self._swap(name)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Undo ``merge``."""
        while self.merged_adapters:
            self._swap(self.merged_adapters.pop())

    def _swap(self, name: str) -> None:
        own, other = cast(torch.Tensor, self.get_base_layer().bias), self.bitfit_bias[name]
        own.data, other.data = other.data.to(own.dtype), own.data.to(other.dtype)


class BitFitModel(BaseTuner):
    """Gives the modules that the config targets a bias that trains."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        if peft_config.target_modules is None:
            peft_config.target_modules = biased_modules(model)
        if not peft_config.target_modules:
            raise ValueError(f"{type(model).__name__} has no bias to train")

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
        if isinstance(target, BitFitLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(getattr(target, "bias", None), nn.Parameter):
            raise ValueError(f"{current_key} has no bias to train")
        layer = BitFitLayer(target)
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def biased_modules(model: nn.Module) -> list[str]:
    """Return the full names of modules without children that have a bias."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter) and not any(module.children())
    ]
