"""Trained keys and values in front of those that each attention layer computes from the text."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, cast

import torch
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.methods.peft_tuners.lengths import full_precision, with_front

_OURS = "made_for_a_prefix"


class KeyValues(nn.Module, ABC):
    """Trained keys and values of every layer, put before the text's own.

        Attention(q, [K_p; K], [V_p; V]) = softmax(q [K_p; K]^T * scale) [V_p; V]

    K_p and V_p hold ``num_virtual_tokens`` rows that every token of every text may attend to. Where the model takes
    cached keys and values they enter as such, which also moves the text to the positions behind them, as HF peft's
    prefix tuning does; DistilBERT, which has no cache, gets them inside its attention and keeps its positions.

    Args:
        model: a transformers model, for its sizes.
        num_virtual_tokens: rows of K_p and V_p.

    Raises:
        ConfigError: the model has an encoder and a decoder, or attention that cannot take them.
    """

    def __init__(self, model: Any, num_virtual_tokens: int) -> None:
        super().__init__()
        config = model.config.get_text_config()
        if getattr(config, "is_encoder_decoder", False) or not (
            takes_cache(model) or config.model_type == "distilbert"
        ):
            raise ConfigError(
                f"prefix tuning is not defined for {type(model).__name__}: its layers take no keys and values from "
                "outside (choose method=prompt or method=lora)"
            )
        heads = config.num_attention_heads
        self.enabled = True
        self.num_virtual_tokens = num_virtual_tokens
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads

    @property
    def width(self) -> int:
        """Numbers of one virtual token in one layer: its key, then its value, each ``num_heads * head_dim``."""
        return 2 * self.num_heads * self.head_dim

    @abstractmethod
    def values(self) -> list[torch.Tensor]:
        """Return a (num_virtual_tokens, width) float32 tensor for each layer."""

    def insert(self, model: Any) -> None:
        """Let the model's attention read the keys and values from now on."""
        if takes_cache(model):
            model.base_model.register_forward_pre_hook(self._fill_cache, with_kwargs=True)
            model.base_model.register_forward_hook(_drop_cache, with_kwargs=True)
            return
        model.base_model.register_forward_pre_hook(self._hand_down, with_kwargs=True)
        for number, layer in enumerate(model.base_model.transformer.layer):
            layer.attention.layer_idx = number
            layer.attention.forward = MethodType(_distilbert_attention, layer.attention)

    def heads(self, layer: torch.Tensor, batch_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a layer, each (batch_size, num_heads, num_virtual_tokens, head_dim)."""
        parts = layer.to(dtype).view(self.num_virtual_tokens, 2, self.num_heads, self.head_dim).permute(1, 2, 0, 3)
        key, value = parts.unsqueeze(1).expand(-1, batch_size, -1, -1, -1).unbind(0)
        return key, value

    def _fill_cache(
        self, backbone: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        from transformers import DynamicCache

        given = dict(kwargs)
        if not self.enabled:
            return args, given
        inputs = next(one for one in (*args, given.get("input_ids"), given.get("inputs_embeds")) if one is not None)
        cache = given.get("past_key_values")
        if cache is None:
            cache = DynamicCache()
            setattr(cache, _OURS, not given.get("use_cache"))
        # While text is generated the cache comes back with the prefix in it.
        if cache.get_seq_length() == 0:
            for number, layer in enumerate(self.values()):
                cache.update(*self.heads(layer, inputs.shape[0], backbone.dtype), number)
        given["past_key_values"] = cache
        given["attention_mask"] = with_front(given.get("attention_mask"), self.num_virtual_tokens, queries=False)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + self.num_virtual_tokens
        return args, given

    def _hand_down(
        self, backbone: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give every layer the whole prefix, which is made once."""
        if not self.enabled:
            return args, dict(kwargs)
        inputs = next(one for one in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if one is not None)
        fronts = [self.heads(layer, inputs.shape[0], backbone.dtype) for layer in self.values()]
        return args, {**kwargs, "prefix_heads": fronts}


class Prefix(KeyValues):
    """One leaf parameter a layer, so that layers can travel separately: ``layers.<n>.key_value`` (tokens, width).

    Args:
        model: a transformers model, for its sizes.
        num_virtual_tokens: rows of each parameter.
        init_std: standard deviation of the normal values they start with.
    """

    def __init__(self, model: Any, num_virtual_tokens: int, init_std: float = 0.0) -> None:
        super().__init__(model, num_virtual_tokens)
        values = [_Values(torch.randn(num_virtual_tokens, self.width) * init_std) for _ in range(self.num_layers)]
        self.layers = nn.ModuleList(values)

    def values(self) -> list[torch.Tensor]:
        """Return the parameters."""
        return [cast(_Values, layer).key_value for layer in self.layers]


class ProjectedPrefix(KeyValues):
    """The prefix as a two-layer network's function of a smaller matrix (Li & Liang 2021, section 4.3).

        [K_p; V_p of all layers] = W2 tanh(W1 E + b1) + b2

    Args:
        model: a transformers model, for its sizes.
        num_virtual_tokens: rows of E.
        hidden_size: rows of W1.
        init_std: standard deviation of the normal values that E starts with.
    """

    def __init__(self, model: Any, num_virtual_tokens: int, hidden_size: int, init_std: float = 1.0) -> None:
        super().__init__(model, num_virtual_tokens)
        d = self.width // 2
        self.embedding = nn.Parameter(torch.randn(num_virtual_tokens, d) * init_std)
        self.transform = nn.Sequential(
            nn.Linear(d, hidden_size), nn.Tanh(), nn.Linear(hidden_size, self.num_layers * self.width)
        )

    def values(self) -> list[torch.Tensor]:
        """Return the layers' parts of the network's output, computed in float32."""
        with full_precision(self.embedding):
            return list(self.transform(self.embedding).split(self.width, dim=1))


def takes_cache(model: Any) -> bool:
    """Return whether the model's layers take cached keys and values."""
    return "past_key_values" in inspect.signature(model.base_model.forward).parameters


def _drop_cache(backbone: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Hand no cache to a caller who gave none: generation without a cache would feed it the text again."""
    if getattr(kwargs.get("past_key_values"), _OURS, False):
        output.past_key_values = None
    return output


class _Values(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.key_value = nn.Parameter(values)


def _distilbert_attention(
    attention: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    prefix_heads: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Self-attention of DistilBERT over the prefix and the text."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.distilbert.modeling_distilbert import eager_attention_forward

    shape = (*hidden_states.shape[:-1], -1, attention.attention_head_size)
    query, key, value = (
        module(hidden_states).view(shape).transpose(1, 2)
        for module in (attention.q_lin, attention.k_lin, attention.v_lin)
    )
    if prefix_heads is not None:
        front_key, front_value = prefix_heads[attention.layer_idx]
        key, value = (torch.cat(both, dim=2) for both in ((front_key, key), (front_value, value)))
        attention_mask = with_front(attention_mask, front_key.shape[2], queries=False)
    output, weights = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )(
        attention,
        query,
        key,
        value,
        attention_mask,
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
        **kwargs,
    )
    return attention.out_lin(output.flatten(2)), weights
