"""Full fine-tuning: everything trains and everything travels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.heads import head_parameters
from fedpeft.methods.inject import check_head, make_tunable
from fedpeft.methods.saving import PREFIX, saved_name, skeleton

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every parameter of the base model trains, in float32; the baseline that methods with few parameters are held to.

    Parameters travel under ``base_model.model.<name>``, tied ones (GPT-2's input and output embedding) once.

    What is saved is no adapter but a whole Hugging Face model: ``config.json`` and ``model.safetensors``, which
    ``AutoModelForSequenceClassification.from_pretrained(folder)`` loads (``AutoModelForCausalLM`` for a model without a
    classification head). Where the head does not travel and is not given, the folder has none.

    Raises:
        ConfigError: on attaching, the base model's weights are stored in 8 or 4 bits.

    Example:
        >>> Full().rank is None
        True
    """

    traits: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[None] = None

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Make every parameter float32 and trainable; see ``Method.attach``."""
        check_head(head)
        if stored := sorted({str(p.dtype) for p in model.parameters() if not p.dtype.is_floating_point}):
            raise ConfigError(
                f"full fine-tuning needs a base model in float32 or bfloat16, got weights stored as "
                f"{', '.join(stored)} (set method=lora or another model.path)"
            )
        heads = head_parameters(model)
        base = {saved_name(name): value for name, value in model.named_parameters()}
        for value in base.values():
            value.data = value.data.float()
            value.requires_grad_(True)
        return make_tunable(model, {key: base[key] for key in base.keys() - heads.keys()}, heads, head)

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``, a whole model; see the class.

        Args:
            tensors: what travels.
            folder: where to write.
            base_model: folder or hub id of the base model, whose config is read.
            head_keys: names of the model's head, whether it travels or not.

        Raises:
            DataError: the base model's config cannot be read.
        """
        from safetensors.numpy import save_file

        shape = skeleton(base_model, head_keys)
        config: Any = shape.config
        config.architectures = [type(shape).__name__]
        config.dtype = "float32"
        if num_labels := _num_labels(shape, tensors, head_keys):
            config.num_labels = num_labels
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        named = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def _num_labels(shape: nn.Module, tensors: Tensors, head_keys: frozenset[str]) -> int | None:
    """Return the rows of the head's tensor that are not as many as in the base model's config, None for none such."""
    expected = {saved_name(name): tuple(value.shape) for name, value in shape.named_parameters()}
    other = (value.shape[0] for key, value in tensors.items() if key in head_keys and value.shape != expected[key])
    return next(other, None)
