"""Where bottleneck adapters sit in a transformer layer, by architecture, and the checks that their methods share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import ConfigError
from fedpeft.methods.targets import are_names, complete, last_names, linear_modules

if TYPE_CHECKING:
    from torch import nn

PLACEMENTS = ("houlsby", "pfeiffer")
"""``houlsby``: after the attention's and after the feed-forward's output projection; ``pfeiffer``: after the latter."""
ACTIVATIONS = ("gelu", "relu", "silu", "tanh")

_BERT = ("attention.output.dense", "output.dense")
_LLAMA = ("self_attn.o_proj", "mlp.down_proj")
SUBLAYERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2"), _BERT),
        **dict.fromkeys(
            ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"), _LLAMA
        ),
        "distilbert": ("attention.out_lin", "ffn.lin2"),
        "modernbert": ("attn.Wo", "mlp.Wo"),
        "gpt2": ("attn.c_proj", "mlp.c_proj"),
        "gpt_neo": ("attn.attention.out_proj", "mlp.c_proj"),
        "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
        "opt": ("self_attn.out_proj", "fc2"),
        "phi": ("self_attn.dense", "mlp.fc2"),
    }
)
"""Model type to the output projections of attention and of feed-forward, named from the layer's number on."""


def target_pattern(model_type: str, placement: str) -> str | None:
    r"""Return the regular expression of the modules that adapters follow, None for an unknown architecture.

    It is anchored at the layer's number, because BERT's ``attention.output.dense`` ends like its ``output.dense``.

    Example:
        >>> print(target_pattern("gpt2", "pfeiffer"))
        .*\.\d+\.(mlp\.c_proj)
    """
    if model_type not in SUBLAYERS:
        return None
    chosen = SUBLAYERS[model_type] if placement == "houlsby" else SUBLAYERS[model_type][1:]
    return rf".*\.\d+\.({'|'.join(re.escape(name) for name in chosen)})"


def common_problems(bottleneck: object, activation: object, placement: object, target_modules: object) -> list[str]:
    """Return what is wrong with the arguments that all bottleneck methods take, one line each."""
    problems = []
    if not is_count(bottleneck):
        problems.append(f"bottleneck must be a whole number >= 1, got {bottleneck!r} (set method.bottleneck)")
    if activation not in ACTIVATIONS:
        problems.append(
            f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r} (set method.activation)"
        )
    if placement not in PLACEMENTS:
        problems.append(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r} (set method.placement)")
    if target_modules is not None and not are_names(target_modules):
        problems.append(
            f"target_modules must be a list of names or null, got {target_modules!r} (set method.target_modules)"
        )
    return problems


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def place(config: Any, model: nn.Module, target_modules: Sequence[str] | None) -> dict[str, int]:
    """Fill in the modules that adapters follow, in place.

    Args:
        config: peft config with ``placement`` and ``bottleneck_size``.
        model: the base model, or one of its shape.
        target_modules: names of linear modules; None for those that the placement means in this architecture.

    Returns:
        full name of each such module and its number of output features.

    Raises:
        ConfigError: the architecture is unknown, a name matches no linear module, or the bottleneck is none.
    """
    if target_modules is not None:
        complete(config, model, target_modules, setting="method.target_modules")
        found = [n for n in linear_modules(model) if any(f".{n}".endswith(f".{one}") for one in target_modules)]
    else:
        config.target_modules = pattern = _pattern(model, config.placement)
        found = [name for name in linear_modules(model) if re.fullmatch(pattern, name)]
    sizes = {name: out_features(linear_modules(model)[name]) for name in found}
    if not sizes:
        wanted = ", ".join(target_modules) if target_modules is not None else config.target_modules
        raise ConfigError(f"{type(model).__name__} has no linear module {wanted} (set method.target_modules)")
    if config.bottleneck_size > min(sizes.values()):
        raise ConfigError(
            f"bottleneck {config.bottleneck_size} is above the smallest target's size {min(sizes.values())} "
            "(set method.bottleneck)"
        )
    return sizes


def out_features(module: nn.Module) -> int:
    """Return the number of output features of a linear module, GPT-2's ``Conv1D`` among them."""
    size: Any = module.nf if hasattr(module, "nf") else module.out_features
    return int(size)


def _pattern(model: nn.Module, placement: str) -> str:
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    pattern = target_pattern(model_type, placement)
    if pattern is None:
        raise ConfigError(
            f"it is not known which modules of a {model_type} model end its sublayers: name those of its linear "
            f"modules {', '.join(last_names(linear_modules(model)))} that do (set method.target_modules)"
        )
    return pattern
