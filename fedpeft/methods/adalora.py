"""AdaLoRA's parameterisation (Zhang et al. 2023, arXiv:2303.10512): a singular value decomposition that trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.core.errors import ConfigError
from fedpeft.methods.base import Tunable
from fedpeft.methods.inject import OneConfig, attach_config
from fedpeft.methods.lora import LoRA
from fedpeft.methods.targets import check_rank, complete

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(OneConfig):
    """Low-rank adaptation as ``W = W0 + (alpha / rank) P diag(lambda) Q`` (arXiv:2303.10512 equation 3).

    P (out_features, rank) is saved as ``lora_B``, lambda (rank, 1) as ``lora_E``, Q (rank, in_features) as ``lora_A``.
    lambda starts at zero. P and Q are drawn towards orthogonality: to the gradient of the loss comes that of

        orth_reg_weight * mean over all P and Q of ( ||P^T P - I||_F , ||Q Q^T - I||_F )

    (the paper's equation 4 as HF peft computes it: norms, not squared, and their mean). The training loss that is
    reported is without it.

    Differs: every module keeps ``rank`` singular values. The paper moves them from module to module by scores that it
    gathers over all of one training run; a client that trains some steps a round and keeps nothing has no such scores,
    and clients that had cut different ranks could not be averaged.

    Args:
        rank: number of singular values a module, 1..1024.
        alpha: numerator of the scaling, positive.
        dropout: dropout on the adapter's input, in [0, 1).
        target_modules: names of the linear modules to adapt, None for HF peft's choice for the architecture.
        orth_reg_weight: weight of the regulariser, >= 0.

    Raises:
        ConfigError: an argument is out of range; all problems together.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    orth_reg_weight: float = 0.5

    traits: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        problems = []
        try:
            LoRA(rank=self.rank, alpha=self.alpha, dropout=self.dropout, target_modules=self.target_modules)
        except ConfigError as error:
            problems += error.problems
        weight = self.orth_reg_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            problems.append(f"orth_reg_weight must be >= 0, got {weight!r} (set method.orth_reg_weight)")
        if problems:
            raise ConfigError(problems)

    def attach(self, model: nn.Module, head: str) -> Tunable:
        """Insert the three factors beside the target modules; see ``Method.attach``."""
        # HF peft divides by a number that it keeps as a parameter, the rank, and on a bfloat16 base lets it train.
        tunable = attach_config(self._config(model), model, head, rank=self.rank, constants=("ranknum",))
        factors = {k: v for k, v in tunable.shared.items() if k.endswith(("lora_A", "lora_B"))}
        if self.orth_reg_weight:
            _regularise(factors, self.orth_reg_weight / len(factors))
        return tunable

    def _config(self, model: nn.Module) -> Any:
        from peft import AdaLoraConfig

        # Without a phase in which ranks are cut; HF peft wants a length of training all the same.
        config: Any = AdaLoraConfig(
            init_r=self.rank,
            target_r=self.rank,
            lora_dropout=self.dropout,
            orth_reg_weight=self.orth_reg_weight,
            tinit=0,
            tfinal=0,
            total_step=1,
        )
        # Declared as an integer, but any number does.
        config.lora_alpha = self.alpha
        complete(config, model, self.target_modules, setting="method.target_modules")
        check_rank(model, config.target_modules, self.rank)
        return config


def _regularise(factors: Mapping[str, torch.Tensor], weight: float) -> None:
    """Add the regulariser's gradient to that of the loss, whoever computes it."""
    for name, value in factors.items():
        hook = _hook(value, weight, rows=name.endswith("lora_A"))
        value.register_hook(hook)


def _hook(value: torch.Tensor, weight: float, *, rows: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    def add(gradient: torch.Tensor) -> torch.Tensor:
        return gradient + weight * orthogonality_gradient(value if rows else value.T, rows=rows)

    return add


def orthogonality_gradient(q: torch.Tensor, *, rows: bool = True) -> torch.Tensor:
    """Return the gradient of ``||Q Q^T - I||_F``, 2 (Q Q^T - I) Q / ||Q Q^T - I||_F; zero where Q Q^T = I.

    Args:
        q: (rank, size).
        rows: False to return it transposed, as the gradient with respect to Q^T.
    """
    import torch

    with torch.no_grad(), torch.autocast(q.device.type if q.device.type != "meta" else "cpu", enabled=False):
        off = q @ q.T - torch.eye(len(q), device=q.device)
        gradient: torch.Tensor = 2 * (off @ q) / torch.linalg.norm(off).clamp_min(torch.finfo(off.dtype).tiny)
    return gradient if rows else gradient.T
