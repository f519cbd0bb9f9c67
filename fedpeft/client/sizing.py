"""What a step of this run takes: operations and memory, counted on its model without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from fedpeft.client.trainer import TrainSettings
from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.flops import StepFlops, measure_step_flops
from fedpeft.device_profiles.memory import StepMemory, measure_step_memory
from fedpeft.methods.base import Method, Tunable
from fedpeft.methods.lora import LoRA
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.tasks.blank import blank_loss, blank_score
from fedpeft.tasks.quantised import Storage

if TYPE_CHECKING:
    from torch import nn

LENGTH_STEP = 32
"""Memory is measured at multiples of so many tokens; between them it is interpolated."""
LEAST_LENGTH = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Sizing:
    """Counts and measures steps of a run's model, method and task.

    Sizings of the same steps are equal, and share what was measured in this process: the runs of a sweep do.

    Attributes:
        method: the method.
        build_base: returns the model without the method's adapter; takes ``attention`` and ``dtype``.
        base: `base_name` of what ``build_base`` builds.
        head: what becomes of the classification head.
        task_kind: ``classification`` or ``causal_lm``.
        attention: transformers' name of the attention that the model runs with.
        dtype: dtype of the base and of the products.
        settings: how clients train.
        learned: share of a language model's tokens that are learned.
        most_tokens: tokens of the run's longest text; no longer batch is measured.
        storage: what storing the base in 8 or 4 bits saves and costs.
        per_example: whether a step holds a gradient of each example beside the batch's, as DP-SGD in hooks mode does.
    """

    method: Method
    build_base: Callable[..., nn.Module]
    base: str
    head: str
    task_kind: str
    attention: str
    dtype: str
    settings: TrainSettings
    learned: float
    most_tokens: int
    storage: Storage
    per_example: bool = False

    @cached_property
    def _steps(self) -> tuple[object, ...]:
        """All that operations and memory depend on. A method is a dataclass, or stays alive with what it was asked."""
        settings, named = self.settings, (self.base, self.head, self.task_kind, self.attention, self.dtype)
        trained = (settings.optimizer, settings.max_grad_norm, self.per_example)
        return (type(self.method), repr(self.method), *named, *trained, self.learned, self.storage)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sizing) and self._steps == other._steps

    def __hash__(self) -> int:
        return hash(self._steps)

    def flops(self, rank: int, trained: frozenset[str] | None, checkpointing: bool = False) -> StepFlops:
        """Return what a step costs; each cost is counted once.

        Args:
            rank: LoRA rank, 0 for the method's own.
            trained: the shared tensors that train; None for a forward pass.
            checkpointing: whether layers are recomputed in the backward pass.

        Raises:
            ConfigError: the method cannot be checkpointed, or the model cannot be counted.
        """
        return self._count(rank, trained, checkpointing)

    @lru_cache(maxsize=1024)  # noqa: B019 - what is remembered is to outlive a run
    def _count(self, rank: int, trained: frozenset[str] | None, checkpointing: bool) -> StepFlops:
        build = partial(self._model, partial(self.build_base, attention="eager"), rank, trained, checkpointing)
        return measure_step_flops(build, forward_only=trained is None, checkpointing=checkpointing)

    def memory(
        self, rank: int, trained: frozenset[str] | None, batch_size: int, seq_len: int, checkpointing: bool = False
    ) -> StepMemory:
        """Return a step's memory, exact where ``seq_len`` is a multiple of `LENGTH_STEP` or the run's longest text.

        In between it is interpolated between both neighbours, never below what it is, so that the clients of a round
        cost a few measurements in all. A tenth of a second to half a second each; all are remembered.

        Args:
            rank: LoRA rank, 0 for the method's own.
            trained: the shared tensors that train; None for an evaluation.
            batch_size: examples.
            seq_len: tokens of the longest one.
            checkpointing: whether layers are recomputed in the backward pass.

        Raises:
            ConfigError: the method cannot be checkpointed.
        """
        below, above = neighbours(seq_len, self.most_tokens)
        first = self._measure(rank, trained, batch_size, below, checkpointing)
        if below == above:
            return first
        second = self._measure(rank, trained, batch_size, above, checkpointing)
        return first.between(second, (seq_len - below) / (above - below))

    @lru_cache(maxsize=4096)  # noqa: B019 - likewise
    def _measure(
        self, rank: int, trained: frozenset[str] | None, batch_size: int, seq_len: int, checkpointing: bool
    ) -> StepMemory:
        base = partial(self.build_base, attention=self.attention, dtype=self.dtype)
        shared_bytes: list[int] = []

        def build() -> Any:
            tunable = self._tunable(base, rank, trained, checkpointing)
            shared_bytes.append(sum(value.nbytes for value in tunable.shared.values()))
            return tunable.model

        make_loss = blank_score if trained is None else blank_loss
        measured = measure_step_memory(
            build,
            batch_size=batch_size,
            seq_len=seq_len,
            dtype=self.dtype,
            optimizer=self.settings.optimizer,
            max_grad_norm=self.settings.max_grad_norm,
            checkpointing=checkpointing,
            forward_only=trained is None,
            loss=make_loss(self.task_kind, batch_size, seq_len, self.learned),
        )
        return replace(
            measured,
            weights_bytes=measured.weights_bytes - self.storage.saved_bytes,
            step_bytes=measured.step_bytes
            + self.storage.dense_bytes
            + (batch_size * measured.gradient_bytes if self.per_example and trained is not None else 0),
            # The tensors as they were before round 1, and the message.
            copies_bytes=2 * shared_bytes[0],
        )

    def _model(self, *args: Any) -> Any:
        return self._tunable(*args).model

    def _tunable(
        self, build_base: Callable[[], nn.Module], rank: int, trained: frozenset[str] | None, checkpointing: bool
    ) -> Tunable:
        method = self.method
        at_rank = replace(method, rank=rank, ranks=None) if rank and isinstance(method, LoRA) else method
        tunable = at_rank.attach(build_base(), self.head)
        for key, value in tunable.shared.items():
            value.requires_grad_(trained is not None and key in trained)
        tunable.configure(0.0, trained or frozenset())
        if checkpointing:
            refuse_checkpointing(tunable.model)
        return tunable


def neighbours(seq_len: int, most: int) -> tuple[int, int]:
    """Return the lengths at which memory is measured for a length: below and above it, twice the same if one of them.

    Args:
        seq_len: tokens.
        most: tokens of the longest text; models with learned positions may take no more.

    Example:
        >>> neighbours(50, 120), neighbours(64, 120), neighbours(119, 120), neighbours(5, 120)
        ((32, 64), (64, 64), (96, 120), (5, 5))
    """
    below = max(seq_len // LENGTH_STEP * LENGTH_STEP, min(seq_len, LEAST_LENGTH))
    above = min(below // LENGTH_STEP * LENGTH_STEP + LENGTH_STEP, most)
    return (seq_len, seq_len) if seq_len in (below, above) or seq_len > above else (below, above)


def base_name(model_config: Any, task_kind: str, dropout: float | None) -> str:
    """Return a text that is equal for models of equal steps.

    Args:
        model_config: a Hugging Face config.
        task_kind: ``classification`` or ``causal_lm``.
        dropout: as set by the run, None for the config's.
    """
    return f"{task_kind} {dropout} {model_config.to_json_string(use_diff=False)}"


def holds_gradients(level: object) -> bool:
    """Return whether training under a privacy level holds the gradients of all examples of a batch at once.

    Args:
        level: what is promised, None for nothing.
    """
    return isinstance(level, ExampleLevel) and level.mode == "hooks"


def refuse_checkpointing(model: Any) -> None:
    """Refuse gradient checkpointing where it would not give the same gradients.

    Raises:
        ConfigError: the architecture has none, or the method's prefix would be lost.
    """
    from fedpeft.methods.peft_tuners.key_values import KeyValues, takes_cache

    instead = "(set client.gradient_checkpointing=false)"
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(f"gradient checkpointing is not defined for {type(model).__name__} {instead}")
    if any(isinstance(module, KeyValues) for module in model.modules()) and takes_cache(model):
        raise ConfigError(
            f"prefix tuning of {type(model).__name__} cannot be checkpointed: its prefix enters the layers as a cache, "
            f"which transformers drops when it recomputes them {instead}"
        )
