"""LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199) through HF peft's adaption prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.traits import LAYERS
from fedpeft.methods.base import Tunable
from fedpeft.methods.heads import head_parameters
from fedpeft.methods.inject import OneConfig, check_head, make_tunable, use_float32
from fedpeft.methods.saving import PREFIX
from fedpeft.methods.virtual import count_problems

if TYPE_CHECKING:
    from torch import nn

MAX_LAYERS = 1000


@dataclass(frozen=True, kw_only=True)
class LlamaAdapter(OneConfig):
    """Gated attention to trained prompts in the topmost layers.

        out = Attn(x) + g W_o softmax(q K_p^T / sqrt(d)) V_p

    K_p and V_p are what the layer's own projections make of a prompt P (1, num_virtual_tokens, hidden size), q is the
    layer's query of the text; g is a scalar that starts at zero, so that training starts from the base model. Both
    are float32: ``<attention>.adaption_prompt`` and ``<attention>.adaption_gate``.

    Differs: for GPT-2, HF peft adds the prompts' part without W_o.

    Args:
        num_virtual_tokens: rows of P, 1..1000; the paper has 10.
        num_layers: how many layers, from the top; None for all.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> sorted(LlamaAdapter(num_virtual_tokens=10, num_layers=2).traits)
        ['layers']
    """

    num_virtual_tokens: int = 10
    num_layers: int | None = None

    traits: ClassVar[frozenset[str]] = frozenset({LAYERS})
    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        problems = count_problems("num_virtual_tokens", self.num_virtual_tokens)
        if self.num_layers is not None:
            problems += count_problems("num_layers", self.num_layers, MAX_LAYERS)
        if problems:
            raise ConfigError(problems)

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Wrap the attention of the topmost layers; see ``Method.attach``."""
        from peft.tuners.adaption_prompt import AdaptionPromptModel

        check_head(head)
        heads = head_parameters(model)
        config = self._config(model)
        model.requires_grad_(False)
        AdaptionPromptModel(model, {"default": config}, "default")
        use_float32(model)
        adapter = {
            PREFIX + name: value
            for name, value in model.named_parameters()
            if name.rpartition(".")[2] in ("adaption_prompt", "adaption_gate")
        }
        return make_tunable(model, adapter, heads, head)

    def _config(self, model: Any) -> Any:
        from peft import AdaptionPromptConfig
        from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

        config = model.config
        if config.model_type not in TRANSFORMERS_MODEL_CONFIG:
            raise ConfigError(
                f"LLaMA-Adapter is not defined for {type(model).__name__}: HF peft knows it for "
                f"{', '.join(TRANSFORMERS_MODEL_CONFIG)} (choose method=prefix, which every architecture has)"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head_dim * config.num_attention_heads != config.hidden_size:
            raise ConfigError(
                f"LLaMA-Adapter needs heads that make up the hidden size: {type(model).__name__} has "
                f"{config.num_attention_heads} heads of {head_dim} for {config.hidden_size} (choose method=prefix)"
            )
        count = config.num_hidden_layers if self.num_layers is None else self.num_layers
        if count > config.num_hidden_layers:
            raise ConfigError(
                f"num_layers must be at most {config.num_hidden_layers}, the layers of {type(model).__name__}, got "
                f"{count} (set method.num_layers)"
            )
        return AdaptionPromptConfig(adapter_len=self.num_virtual_tokens, adapter_layers=count)
