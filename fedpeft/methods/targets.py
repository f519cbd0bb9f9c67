"""Which modules of a base model an injected adapter sits beside, and how their weights lie."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from fedpeft.core.errors import ConfigError
from fedpeft.methods.heads import head_module_names

if TYPE_CHECKING:
    import torch
    from torch import nn

LINEAR_TYPES = ("Linear", "Conv1D", "Linear8bitLt", "Linear4bit")
"""Class names of modules with a weight matrix: torch's, GPT-2's transposed one, and those stored in 8 or 4 bits."""


ALL_LINEAR = "all-linear"
"""HF peft's word for every linear module but the head's and the one that makes a language model's logits."""


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's linear modules by full name, without those of its classification head."""
    head = head_module_names(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in LINEAR_TYPES and name.split(".")[0] not in head
    }


def last_names(modules: dict[str, nn.Module]) -> list[str]:
    """Return the last parts of full names, each once, sorted."""
    return sorted({name.split(".")[-1] for name in modules})


def are_names(value: object) -> bool:
    """Return whether a value is a list of one text or more, none of them empty.

    Example:
        >>> [are_names(value) for value in (["query"], "query", [], [""])]
        [True, False, False, False]
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return len(value) > 0 and all(isinstance(one, str) and one for one in value)


def are_targets(value: object) -> bool:
    """Return whether a value says which linear modules: a list of names, or `ALL_LINEAR`."""
    return value == ALL_LINEAR or are_names(value)


def complete(config: Any, model: nn.Module, target_modules: Sequence[str] | None, *, setting: str) -> None:
    """Fill in what an HF peft config leaves to the architecture, in place.

    ``target_modules`` (where None: HF peft's default for the model type), ``feedforward_modules`` beside it,
    ``fan_in_fan_out`` (True for GPT-2's ``Conv1D``, whose weight is (in_features, out_features)) and
    ``exclude_modules``: the classification head trains whole and gets no adapter beside that.

    Args:
        config: an HF peft config; fields that it lacks are left alone.
        model: the base model, or one of its shape.
        target_modules: names of modules, matched at the end of full names; `ALL_LINEAR`; None for the default.
        setting: what to set, for messages.

    Raises:
        ConfigError: there is no default for the model type, no module of such a name, or the targets mix layouts.
    """
    if target_modules == ALL_LINEAR:
        targets = _all_linear(model)
    elif target_modules is not None:
        targets = list(target_modules)
    else:
        targets = _default_targets(config, model, setting)
    config.target_modules = targets
    if getattr(config, "feedforward_modules", targets) is None:
        config.feedforward_modules = _default_feedforward(model, targets)
    in_head = [n for n in _head_modules(model) if _matches(n, targets)]
    if in_head:
        config.exclude_modules = sorted(in_head)
    # A name given in full must be there in full; one that only ends so would adapt nothing.
    everything = dict(model.named_modules())
    found = {n: m for n, m in everything.items() if _matches(n, targets) and n not in in_head}
    if missing := [t for t in targets if not any(_matches(n, [t]) for n in found)]:
        raise ConfigError(_missing(model, missing, setting))
    transposed = {type(m).__name__ == "Conv1D" for m in found.values() if type(m).__name__ in LINEAR_TYPES}
    if len(transposed) > 1:
        raise ConfigError(f"{setting} must not mix Linear and Conv1D modules, got {', '.join(targets)}")
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = transposed == {True}


def check_rank(model: nn.Module, targets: Sequence[str], rank: int, *, setting: str = "method.rank") -> None:
    """Refuse a rank above the smaller side of a target's weight: more factors than the matrix has directions.

    Args:
        model: the model, without adapter.
        targets: names of the target modules.
        rank: the largest rank that any client trains at.
        setting: which setting gives it, for the message.

    Raises:
        ConfigError: the rank is too large.
    """
    sizes = [
        # A weight in 4 bits is a column of codes; what it stands for knows its own shape.
        min(getattr(module.weight, "quant_state", cast("torch.Tensor", module.weight)).shape)
        for name, module in linear_modules(model).items()
        if _matches(name, targets)
    ]
    if sizes and rank > min(sizes):
        raise ConfigError(f"rank {rank} is above the smallest target's size {min(sizes)} (set {setting})")


def _default_targets(config: Any, model: nn.Module, setting: str) -> list[str]:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    mapping = getattr(tuner, "target_module_mapping", TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING)
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    targets = mapping.get(model_type)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if targets is None and kind == "LN_TUNING":
        targets = last_names({n: m for n, m in model.named_modules() if type(m).__name__.endswith("Norm")})
    if not targets or isinstance(targets, str):
        raise ConfigError(
            f"{kind} has no default target modules for a {model_type} model: name some of its linear modules "
            f"{', '.join(last_names(linear_modules(model)))} (set {setting})"
        )
    return list(targets)


def _all_linear(model: nn.Module) -> list[str]:
    logits = getattr(model, "get_output_embeddings", lambda: None)()
    return last_names({name: module for name, module in linear_modules(model).items() if module is not logits})


def _default_feedforward(model: nn.Module, targets: list[str]) -> list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as MAPPING

    return [name for name in MAPPING.get(getattr(model.config, "model_type", ""), []) if name in targets]


def _head_modules(model: nn.Module) -> list[str]:
    heads = head_module_names(model)
    return [name for name, _ in model.named_modules() if name.split(".")[0] in heads]


def _matches(name: str, targets: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _missing(model: nn.Module, missing: list[str], setting: str) -> str:
    names = last_names(linear_modules(model))
    close = difflib.get_close_matches(missing[0], names, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return f"{type(model).__name__} has no module {', '.join(missing)}: it has {', '.join(names)}{hint} (set {setting})"
