"""LoRA (Hu et al. 2022, arXiv:2106.09685) through HF peft's functional API."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Tensors
from fedpeft.methods.base import FACTORS, HEAD_MODES, RANKS, Tunable
from fedpeft.methods.heads import head_module_names, head_parameters

if TYPE_CHECKING:
    from torch import nn

MAX_RANK = 1024
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adaptation: ``W = W0 + (alpha / rank) B A``.

    A (rank, in_features) and B (out_features, rank) are float32, W0 is frozen. A starts Kaiming-uniform, B at zero, so
    that training starts from the base model.

    Args:
        rank: rank of the update, 1..1024.
        alpha: numerator of the scaling alpha / rank, positive.
        dropout: dropout on the adapter's input, in [0, 1).
        target_modules: names of the linear modules to adapt.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> LoRA(rank=4, alpha=8, target_modules=["query"]).scaling
        2.0
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: Sequence[str] = ("query", "value")

    traits: ClassVar[frozenset[str]] = frozenset({FACTORS, RANKS})

    def __post_init__(self) -> None:
        problems = []
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= MAX_RANK:
            problems.append(f"rank must be in 1..{MAX_RANK}, got {self.rank} (set method.rank)")
        if not (_is_number(self.alpha) and 0 < self.alpha < math.inf):
            problems.append(f"alpha must be positive, got {self.alpha!r} (set method.alpha)")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            problems.append(f"dropout must be in [0, 1), got {self.dropout!r} (set method.dropout)")
        targets = self.target_modules
        if isinstance(targets, str) or not targets or not all(isinstance(one, str) and one for one in targets):
            problems.append(
                f"target_modules must be a list of names, got {self.target_modules!r} (set method.target_modules)"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def scaling(self) -> float:
        """What the product B A is multiplied by: alpha / rank."""
        return self.alpha / self.rank

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Insert factors beside the target modules; see ``Method.attach``."""
        from peft import get_peft_model_state_dict, inject_adapter_in_model

        if head not in HEAD_MODES:
            raise ConfigError(f"head must be one of {', '.join(HEAD_MODES)}, got {head!r} (set head)")
        self._check_targets(model)
        heads = head_parameters(model)
        model.requires_grad_(False)
        inject_adapter_in_model(self._config(heads), model)
        _use_float32_factors(model)
        # keep_vars: the parameters themselves, not detached copies, because an optimiser must see their gradients.
        live = get_peft_model_state_dict(model, state_dict=model.state_dict(keep_vars=True))
        factors = {_saved_name(key): value for key, value in live.items()}
        for value in heads.values():
            value.requires_grad_(head != "freeze")
            value.data = value.data.float()
        shared = factors | (heads if head == "share" else {})
        return Tunable(
            model=model,
            shared={key: shared[key] for key in sorted(shared)},
            local={key: heads[key] for key in sorted(heads)} if head == "local" else {},
            head_keys=frozenset(heads),
            rank=self.rank,
        )

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        from safetensors.numpy import save_file

        heads = sorted({key.removeprefix(PREFIX).split(".")[0] for key in head_keys & tensors.keys()})
        config = self._config(
            head_keys, base_model=base_model, task_type="SEQ_CLS" if heads else None, modules_to_save=heads or None
        )
        entries = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(
            json.dumps(entries | {"inference_mode": True}, indent=2, default=str) + "\n"
        )
        save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _config(self, head_keys: Iterable[str], base_model: str | None = None, **extra: Any) -> Any:
        from peft import LoraConfig

        # The head trains whole; RoBERTa's has a "dense" like every layer, which must not get factors beside that.
        in_head = {key.removeprefix(PREFIX).rpartition(".")[0] for key in head_keys}
        excluded = sorted(
            name for name in in_head if any(f".{name}".endswith(f".{target}") for target in self.target_modules)
        )
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules),
            exclude_modules=excluded or None,
            base_model_name_or_path=base_model,
            **extra,
        )

    def _check_targets(self, model: nn.Module) -> None:
        """Refuse names that match no module, and name those that would do; also a rank above a target's size."""
        head = head_module_names(model)
        found = {
            name: module for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")
        }
        linear = {name: module for name, module in found.items() if name.split(".")[0] not in head}
        names = {name.split(".")[-1] for name in linear}
        problems = []
        if missing := [target for target in self.target_modules if target.split(".")[-1] not in names]:
            problems.append(
                f"{type(model).__name__} has no module {', '.join(missing)}: it has {', '.join(sorted(names))} "
                "(set method.target_modules)"
            )
        targets = {target.split(".")[-1] for target in self.target_modules}
        sizes = [min(module.weight.shape) for name, module in linear.items() if name.split(".")[-1] in targets]
        if sizes and self.rank > min(sizes):
            problems.append(f"rank {self.rank} is above the smallest target's size {min(sizes)} (set method.rank)")
        if problems:
            raise ConfigError(problems)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _use_float32_factors(model: nn.Module) -> None:
    """Keep the factors in float32 beside a bfloat16 base.

    Under autocast the products still run in bfloat16, and peft must not cast their input up first.
    """
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = False


def _saved_name(key: str) -> str:
    """HF peft saves adapters of wrapped models under this prefix; injected ones lack it."""
    return key if key.startswith(PREFIX) else PREFIX + key
