"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): only the biases train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable
from fedpeft.methods.heads import head_module_names
from fedpeft.methods.inject import attach_config
from fedpeft.methods.saving import head_modules_of, write_adapter

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BitFit:
    """Every bias that the base model has trains, those of normalisation layers too; nothing else does but the head.

    Biases travel and are saved as ``<module>.bitfit_bias``, whole and in float32, not as a change. To load a saved
    adapter, import ``fedpeft.methods.peft_tuners`` before ``PeftModel.from_pretrained``.

    Raises:
        ConfigError: on attaching, the architecture has no bias (Llama).

    Example:
        >>> BitFit().rank is None
        True
    """

    traits: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[None] = None

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Put trained biases in the place of the frozen ones; see ``Method.attach``."""
        from fedpeft.methods.peft_tuners.bitfit import biased_modules

        heads = head_module_names(model)
        if not [name for name in biased_modules(model) if name.split(".")[0] not in heads]:
            raise ConfigError(
                f"BitFit trains biases, and {type(model).__name__} has none outside its head: choose another method, "
                "e.g. method=ln_tuning or method=lora (set method)"
            )
        head_parts = [name for name, _ in model.named_modules() if name.split(".")[0] in heads]
        return attach_config(_config(head_parts), model, head)

    def save(self, tensors: Tensors, folder: Path, *, base_model: str, head_keys: frozenset[str]) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``; see ``Method.save``."""
        parts = {key.removeprefix("base_model.model.").rpartition(".")[0] for key in head_keys}
        config = _config(sorted(parts | set(head_modules_of(head_keys))))
        write_adapter(config, tensors, folder, base_model=base_model, head_keys=head_keys)


def _config(head_parts: list[str]) -> Any:
    # The package's import is what makes the method known to HF peft.
    from fedpeft.methods.peft_tuners import BitFitConfig

    return BitFitConfig(exclude_modules=head_parts or None)
