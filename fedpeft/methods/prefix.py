"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190), by default as deep prompts (P-tuning v2, arXiv:2110.07602)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.traits import LAYERS
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.inject import check_head
from fedpeft.methods.saving import skeleton
from fedpeft.methods.virtual import attach_tokens, count_problems, fill, write_hf, write_own

if TYPE_CHECKING:
    from torch import nn

MAX_HIDDEN = 65536


@dataclass(frozen=True, kw_only=True)
class PrefixTuning:
    """Trained keys and values in front of the text's in every layer: ``softmax(q [K_p; K]^T * scale) [V_p; V]``.

    Each layer has one float32 parameter, ``base_model.model.prefix.layers.<n>.key_value`` with shape
    (num_virtual_tokens, 2 d): a row is a key and then a value, d = key-value heads x head size (smaller than the
    model's width under grouped-query attention). Unlike an adapter, a new prefix changes the outputs at once.

    With ``reparameterize`` the prefix is what a two-layer network makes of a (num_virtual_tokens, d) matrix, as Li &
    Liang train it; then the network travels, which is far larger and cannot be split by layer.

    Where positions are learned (BERT, RoBERTa, GPT-2) the text starts behind the prefix, as in HF peft, so that
    ``num_virtual_tokens`` plus the text's tokens must not exceed them. DistilBERT keeps the text's positions.

    A saved prefix is HF peft's own kind wherever HF peft gives the outputs that were trained. For DistilBERT, and for
    a classifier whose head does not travel, it is ours and loads after ``import fedpeft.methods.peft_tuners``.

    Args:
        num_virtual_tokens: rows of the prefix, 1..1000.
        init_std: standard deviation of the prefix's first values, at least 0; with ``reparameterize`` that of the
            network's input, which Li & Liang start at 1.
        reparameterize: train through a network.
        hidden_size: width of that network.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> sorted(PrefixTuning(num_virtual_tokens=8).traits)
        ['layers']
    """

    num_virtual_tokens: int = 16
    init_std: float = 0.02
    reparameterize: bool = False
    hidden_size: int = 512

    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        problems = count_problems("num_virtual_tokens", self.num_virtual_tokens)
        number = isinstance(self.init_std, (int, float)) and not isinstance(self.init_std, bool)
        if not (number and 0 <= self.init_std < math.inf):
            problems.append(f"init_std must be a number >= 0, got {self.init_std!r} (set method.init_std)")
        if not isinstance(self.reparameterize, bool):
            problems.append(
                f"reparameterize must be true or false, got {self.reparameterize!r} (set method.reparameterize)"
            )
        problems += count_problems("hidden_size", self.hidden_size, MAX_HIDDEN)
        if problems:
            raise ConfigError(problems)

    @property
    def traits(self) -> frozenset[str]:
        """What strategies may count on; see ``Method.traits``."""
        return frozenset() if self.reparameterize else frozenset({LAYERS})

    @property
    def virtual_tokens(self) -> int:
        """Positions that the prefix takes from the text."""
        return self.num_virtual_tokens

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Put the prefix into every attention layer; see ``Method.attach``."""
        check_head(head)
        return attach_tokens(model, "prefix", self._tokens(model), head)

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        import torch
        from peft import PrefixTuningConfig

        from fedpeft.methods.peft_tuners.key_values import takes_cache

        base = skeleton(base_model, head_keys)
        tokens = self._tokens(base)
        fill("prefix", tokens, tensors)
        with torch.no_grad():
            layers = [layer.numpy() for layer in tokens.values()]
        if takes_cache(base) and (not head_keys or head_keys <= tensors.keys()):
            config = PrefixTuningConfig(num_virtual_tokens=self.num_virtual_tokens)
            flat = torch.cat([torch.from_numpy(layer) for layer in layers], dim=1).numpy()
            write_hf(config, flat, tensors, folder, base_model=base_model, head_keys=head_keys)
            return
        named = {f"layers.{number}.key_value": layer.copy() for number, layer in enumerate(layers)}
        write_own("prefix", self.num_virtual_tokens, named, tensors, folder, base_model=base_model, head_keys=head_keys)

    def _tokens(self, model: Any) -> Any:
        from fedpeft.methods.peft_tuners.key_values import Prefix, ProjectedPrefix

        if self.reparameterize:
            return ProjectedPrefix(model, self.num_virtual_tokens, self.hidden_size, self.init_std)
        return Prefix(model, self.num_virtual_tokens, self.init_std)
