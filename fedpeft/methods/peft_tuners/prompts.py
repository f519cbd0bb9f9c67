"""Trained embeddings in front of those of the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.methods.heads import head_module_names
from fedpeft.methods.peft_tuners.lengths import full_precision, with_front


class Prompt(nn.Module):
    """Embeddings of virtual tokens, ``embedding`` (num_virtual_tokens, d), put before the text's: ``[P; E(text)]``.

    The text moves to the positions behind them. An encoder's head reads position 0 as always, now the first virtual
    token. A decoder's head sees the text's positions only, so that a classifier finds the last token of each padded
    text and a language model gives as many logits as there are tokens.

    Args:
        model: a transformers model, for the size of its embeddings.
        num_virtual_tokens: rows of P.

    Raises:
        ConfigError: the model has an encoder and a decoder.
    """

    def __init__(self, model: Any, num_virtual_tokens: int) -> None:
        super().__init__()
        if getattr(model.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"prompts are not defined for {type(model).__name__}, which has an encoder and a decoder "
                "(choose method=lora)"
            )
        self.enabled = True
        self.num_virtual_tokens = num_virtual_tokens
        table = model.get_input_embeddings().weight
        self.embedding = nn.Parameter(torch.zeros(num_virtual_tokens, table.shape[1]))

    def values(self) -> torch.Tensor:
        """Return P, (num_virtual_tokens, d) in float32."""
        return self.embedding

    def insert(self, model: Any) -> None:
        """Put the virtual tokens in front of every text from now on."""
        model.base_model.register_forward_pre_hook(self._enter, with_kwargs=True)
        if pools_last_token(model) or not head_module_names(model):
            model.base_model.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(
        self, backbone: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given, count = dict(kwargs), self.num_virtual_tokens
        if not self.enabled:
            return args, given
        cache, positions = given.get("past_key_values"), given.get("position_ids")
        # While text is generated the cache comes back with the virtual tokens in it.
        cached = cache is not None and cache.get_seq_length() > 0
        given["attention_mask"] = with_front(given.get("attention_mask"), count, queries=not cached)
        if positions is not None:
            front = torch.arange(count, device=positions.device).expand(len(positions), -1)
            given["position_ids"] = positions + count if cached else torch.cat([front, positions + count], dim=1)
        if cached:
            return args, given
        if given.get("inputs_embeds") is None:
            ids = args[0] if args else given["input_ids"]
            given["inputs_embeds"] = backbone.get_input_embeddings()(ids)
        embeds = given["inputs_embeds"]
        front = self.values().to(embeds.dtype).expand(len(embeds), -1, -1)
        given["inputs_embeds"] = torch.cat([front, embeds], dim=1)
        given["input_ids"] = None
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = nn.functional.pad(given["token_type_ids"], (count, 0))
        return (), given

    def _leave(self, backbone: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if self.enabled and kwargs.get("inputs_embeds") is not None:
            output.last_hidden_state = output.last_hidden_state[:, self.num_virtual_tokens :]
        return output


class EncodedPrompt(Prompt):
    """A prompt that a small network makes from ``embedding`` (Liu et al. 2021, section 3.2).

    ``mlp``: three linear layers with ReLU between them. ``lstm``: two bidirectional LSTM layers, then two linear
    layers with ReLU between them.

    Args:
        model: a transformers model, for the size of its embeddings.
        num_virtual_tokens: rows of P.
        encoder: ``mlp`` or ``lstm``.
        hidden_size: width of the network.
    """

    def __init__(self, model: Any, num_virtual_tokens: int, encoder: str, hidden_size: int | None) -> None:
        super().__init__(model, num_virtual_tokens)
        d = self.embedding.shape[1]
        h = hidden_size or d
        nn.init.normal_(self.embedding)
        if encoder == "lstm":
            self.lstm = nn.LSTM(d, h, num_layers=2, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * h, 2 * h), nn.ReLU(), nn.Linear(2 * h, d))
        else:
            self.mlp = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, d))

    def values(self) -> torch.Tensor:
        """Return the network's output, computed in float32."""
        with full_precision(self.embedding):
            hidden = self.embedding
            if hasattr(self, "lstm"):
                hidden = self.lstm(hidden.unsqueeze(0))[0].squeeze(0)
            out: torch.Tensor = self.mlp(hidden)
            return out


def pools_last_token(model: nn.Module) -> bool:
    """Return whether the model is a decoder that classifies by each text's last token (its head is ``score``)."""
    return "score" in head_module_names(model)
