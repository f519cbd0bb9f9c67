"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691) and P-tuning (Liu et al. 2021, arXiv:2103.10385)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.inject import check_head
from fedpeft.methods.saving import skeleton
from fedpeft.methods.virtual import attach_tokens, count_problems, fill, write_hf, write_own

if TYPE_CHECKING:
    from torch import nn

INITS = ("vocabulary", "normal")
ENCODERS = ("mlp", "lstm")
MAX_HIDDEN = 65536


@dataclass(frozen=True, kw_only=True)
class PromptTuning:
    """Trained embeddings P (num_virtual_tokens, d) in front of the text's: the model reads ``[P; E(text)]``.

    The one float32 parameter is ``base_model.model.prompt.embedding``. The text moves to the positions behind the
    prompt, so that where positions are learned ``num_virtual_tokens`` plus the text's tokens must not exceed them. A
    new prompt changes the outputs at once.

    Encoders classify by position 0, then the first virtual token, as in HF peft. Decoders classify by each text's last
    token and give logits for the text's tokens only.

    A saved prompt is HF peft's own kind wherever HF peft gives the outputs that were trained. For a classifier on a
    decoder, where HF peft reads the padding behind a text, and for one whose head does not travel, it is ours and
    loads after ``import fedpeft.methods.peft_tuners``.

    Differs: ``vocabulary`` draws from the whole vocabulary, the paper from its 5,000 most common words.

    Args:
        num_virtual_tokens: rows of P, 1..1000.
        init: ``vocabulary``: rows start as embeddings of tokens drawn at random; ``normal``: standard normal values.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> PromptTuning(num_virtual_tokens=8).virtual_tokens
        8
    """

    num_virtual_tokens: int = 16
    init: str = "vocabulary"

    traits: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        problems = count_problems("num_virtual_tokens", self.num_virtual_tokens)
        if self.init not in INITS:
            problems.append(f"init must be one of {', '.join(INITS)}, got {self.init!r} (set method.init)")
        if problems:
            raise ConfigError(problems)

    @property
    def virtual_tokens(self) -> int:
        """Positions that the prompt takes from the text."""
        return self.num_virtual_tokens

    def attach(self, model: Any, head: str) -> Tunable:
        """Put the prompt in front of every text; see ``Method.attach``."""
        import torch

        from fedpeft.methods.peft_tuners.prompts import Prompt

        check_head(head)
        prompt = Prompt(model, self.num_virtual_tokens)
        with torch.no_grad():
            if self.init == "vocabulary":
                words = model.get_input_embeddings()
                prompt.embedding.copy_(words(torch.randint(words.num_embeddings, (self.num_virtual_tokens,))))
            else:
                prompt.embedding.normal_()
        return attach_tokens(model, "prompt", prompt, head)

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        from peft import PromptTuningConfig

        from fedpeft.methods.peft_tuners.prompts import Prompt

        base = skeleton(base_model, head_keys)
        config = PromptTuningConfig(num_virtual_tokens=self.num_virtual_tokens)
        tokens = Prompt(base, self.num_virtual_tokens)
        _save(config, tokens, base, tensors, folder, base_model=base_model, head_keys=head_keys)


@dataclass(frozen=True, kw_only=True)
class PTuning:
    """A prompt that a small network makes: ``P = f(E)``, E (num_virtual_tokens, d) and f's weights train.

    f is two bidirectional LSTM layers and a two-layer network (``lstm``, as in the paper) or a three-layer network
    (``mlp``, HF peft's default), with ReLU between layers. Only P matters after training, and only P is saved: an
    adapter file is as small as prompt tuning's, while f travels in every round. Everything else is as in
    ``PromptTuning``.

    Differs: all virtual tokens stand in front; the paper also places some inside the text by a template.

    Args:
        num_virtual_tokens: rows of P, 1..1000.
        encoder: ``mlp`` or ``lstm``.
        hidden_size: width of the network, None for the model's own.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> PTuning(num_virtual_tokens=8, encoder="lstm", hidden_size=64).virtual_tokens
        8
    """

    num_virtual_tokens: int = 16
    encoder: str = "mlp"
    hidden_size: int | None = 128

    traits: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[None] = None

    def __post_init__(self) -> None:
        problems = count_problems("num_virtual_tokens", self.num_virtual_tokens)
        if self.encoder not in ENCODERS:
            problems.append(f"encoder must be one of {', '.join(ENCODERS)}, got {self.encoder!r} (set method.encoder)")
        if self.hidden_size is not None:
            problems += count_problems("hidden_size", self.hidden_size, MAX_HIDDEN)
        if problems:
            raise ConfigError(problems)

    @property
    def virtual_tokens(self) -> int:
        """Positions that the prompt takes from the text."""
        return self.num_virtual_tokens

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Put the prompt in front of every text; see ``Method.attach``."""
        check_head(head)
        return attach_tokens(model, "prompt", self._tokens(model), head)

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        from peft import PromptEncoderConfig

        base = skeleton(base_model, head_keys)
        config = PromptEncoderConfig(num_virtual_tokens=self.num_virtual_tokens)
        _save(config, self._tokens(base), base, tensors, folder, base_model=base_model, head_keys=head_keys)

    def _tokens(self, model: Any) -> Any:
        from fedpeft.methods.peft_tuners.prompts import EncodedPrompt

        return EncodedPrompt(model, self.num_virtual_tokens, self.encoder, self.hidden_size)


def _save(
    config: Any, tokens: Any, base: Any, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]
) -> None:
    import torch

    from fedpeft.methods.peft_tuners.prompts import pools_last_token

    fill("prompt", tokens, tensors)
    with torch.no_grad():
        prompt = tokens.values().numpy().copy()
    if head_keys and (pools_last_token(base) or not head_keys <= tensors.keys()):
        count = config.num_virtual_tokens
        write_own("prompt", count, {"embedding": prompt}, tensors, folder, base_model=base_model, head_keys=head_keys)
        return
    # HF peft looks these up under names that not every architecture's config has.
    config.token_dim = prompt.shape[1]
    config.num_layers = base.config.num_hidden_layers
    config.num_attention_heads = base.config.num_attention_heads
    write_hf(config, prompt, tensors, folder, base_model=base_model, head_keys=head_keys)
