"""Any method of HF peft that is injected beside a model's modules, by its own name and options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.methods.inject import OneConfig
from fedpeft.methods.targets import are_targets, complete

if TYPE_CHECKING:
    from torch import nn

_ELSEWHERE = {
    "peft_type": "set method.peft_type",
    "target_modules": "set method.target_modules",
    "modules_to_save": "the head is set by head",
    "exclude_modules": "the head is left out by itself",
    "fan_in_fan_out": "the layout of the weights is found in the model",
    "inference_mode": "it is set when an adapter is saved",
    "task_type": "it is set when an adapter is saved",
    "base_model_name_or_path": "set model.path",
    "revision": "set model.revision",
    "auto_mapping": "it is HF peft's own",
    "peft_version": "it is HF peft's own",
}
"""Fields of HF peft's configs that are decided elsewhere, and where."""


@dataclass(frozen=True, kw_only=True)
class PeftTuner(OneConfig):
    """A method of HF peft by pass-through: LoHa, LoKr, OFT, BOFT, HRA, FourierFT, IA3, LayerNorm tuning and more.

    IA3 (Liu et al. 2022, arXiv:2205.05638): keys, values and the feed-forward layer's input are multiplied element by
    element with trained vectors, which start at one. LayerNorm tuning (Zhao et al. 2023, arXiv:2312.11420): only the
    normalisation layers train.

    Args:
        peft_type: name of the method as HF peft writes it in ``adapter_config.json``, e.g. ``LOHA``.
        options: fields of the method's HF peft config, e.g. ``{"r": 4}``; what is not given has HF peft's default.
        target_modules: names of the modules to adapt, None for HF peft's choice for the architecture (LayerNorm tuning
            takes every normalisation layer where HF peft has no choice).

    Raises:
        ConfigError: no such method or option, a method that HF peft cannot inject, or a value that it refuses.

    Example:
        >>> PeftTuner(peft_type="LOHA", options={"r": 4}).peft_type
        'LOHA'
    """

    peft_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    target_modules: Sequence[str] | str | None = None

    traits: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        targets = self.target_modules
        problems = _option_problems(self.peft_type, self.options)
        if targets is not None and not are_targets(targets):
            problems.append(
                f"target_modules must list names or be all-linear, got {targets!r} (set method.target_modules)"
            )
        if problems:
            raise ConfigError(problems)
        self._new_config()

    def _config(self, model: nn.Module) -> Any:
        config = self._new_config()
        complete(config, model, self.target_modules, setting="method.target_modules")
        return config

    def _new_config(self) -> Any:
        make = _config_class(self.peft_type)
        options = dict(self.options)
        if "save_projection" in {one.name for one in fields(make)}:
            # Fixed random projections are made again from their seed, wherever the adapter is loaded.
            options.setdefault("save_projection", False)
        try:
            return make(**options)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"HF peft refuses method.options of {self.peft_type}: {str(error).splitlines()[0]}"
            ) from error


def _option_problems(peft_type: object, options: object) -> list[str]:
    """Say what is wrong with a method's name and the names of its options."""
    names = injectable()
    if not isinstance(peft_type, str) or peft_type not in names:
        close = difflib.get_close_matches(str(peft_type).upper(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(names)}"
        return [f"HF peft can inject no {peft_type!r}: {hint} (set method.peft_type)"]
    if not isinstance(options, Mapping):
        return [f"options must be a mapping of names to values, got {options!r} (set method.options)"]
    known = sorted({one.name for one in fields(_config_class(peft_type)) if one.init} - set(_ELSEWHERE))
    problems = []
    for name in options:
        if name in _ELSEWHERE:
            problems.append(f"method.options must not hold {name}: {_ELSEWHERE[name]}")
        elif name not in known:
            close = difflib.get_close_matches(str(name), known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known)}"
            problems.append(f"{peft_type} has no option {name}: {hint} (set method.options)")
    return problems


def _config_class(peft_type: str) -> Any:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]


def injectable() -> list[str]:
    """Return the names of HF peft's methods that can be injected into a model, sorted.

    Prompt learning wraps the model instead, and methods whose layers share fixed tensors (VeRA) keep them in that
    wrapper.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType

    own = {str(one.value): PEFT_TYPE_TO_TUNER_MAPPING.get(one) for one in PeftType}
    return sorted(
        name
        for name, tuner in own.items()
        if name == "IA3" or (hasattr(tuner, "target_module_mapping") and not getattr(tuner, "uses_shared_state", False))
    )
