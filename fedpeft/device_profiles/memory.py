"""Memory of a training step, measured on the real model without its weights.

The step runs on tensors that have shapes but no values, as torch would run it on a CPU: the same attention kernels, the
same autocast, the same optimiser. What lives at once is counted operation by operation, so that method, trained layers,
dropout, dtype and gradient checkpointing change the figure as they change a real process.
``benchmarks/memory_model.py`` holds it against real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.checkpointing import checkpointed

if TYPE_CHECKING:
    import torch
    from torch import nn

MIB = 2**20
PROCESS_MB = 485
"""MiB resident in a client's process beside model and data: Python, torch, transformers, peft, flwr and their code.

Measured by ``benchmarks/memory_model.py`` on x86-64 Linux with the versions of ``constraints.txt``, one thread, and the
allocator settings of ``engines/memory``.
"""
PROCESS_DATA_MB = 500
"""MiB of private writable memory of the same process, touched or not, which is what ``RLIMIT_DATA`` limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Memory of one training step, or of one forward pass.

    Attributes:
        weights_bytes: parameters and buffers, trained and frozen.
        gradient_bytes: gradients of what trains.
        optimizer_bytes: the optimiser's state from the second step on.
        saved_bytes: what the forward pass leaves for the backward pass, the batch included.
        step_bytes: most that lives at once beside weights and optimiser: saved activations, gradients, temporaries.
        moved_bytes: read and written in the step by operations other than matrix products.
        copies_bytes: copies of the exchanged tensors that the client holds meanwhile.
    """

    weights_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    saved_bytes: float
    step_bytes: float
    moved_bytes: float
    copies_bytes: float = 0.0

    @property
    def peak_bytes(self) -> float:
        """Most that lives at once, beyond the process itself."""
        return self.weights_bytes + self.optimizer_bytes + self.copies_bytes + self.step_bytes

    @property
    def process_bytes(self) -> float:
        """Most that the process holds at once."""
        return PROCESS_MB * MIB + self.peak_bytes

    def between(self, other: StepMemory, share: float) -> StepMemory:
        """Return the memory at a share of the way to another step's, 0 for this one's and 1 for the other's.

        The peak is a convex function of the sequence length (a maximum of sums of products of sizes), so that between
        two lengths it is never underestimated.
        """
        mixed = {f.name: (1 - share) * getattr(self, f.name) + share * getattr(other, f.name) for f in fields(self)}
        return StepMemory(**mixed)


def measure_step_memory(
    build_model: Callable[[], nn.Module],
    *,
    batch_size: int,
    seq_len: int,
    dtype: str = "float32",
    optimizer: str = "adamw",
    max_grad_norm: float | None = 1.0,
    checkpointing: bool = False,
    forward_only: bool = False,
    loss: Callable[[nn.Module], torch.Tensor] | None = None,
) -> StepMemory:
    """Measure forward, backward, clipping and the optimiser's step of a model as it will be trained.

    The bytes moved are the arguments and results of every operation that is no matrix product: activations, norms,
    sums, the optimiser. These operations take as long as memory does, matrix products as long as their arithmetic.

    Args:
        build_model: returns the model ready to train, with frozen base and trainable adapters, in the dtypes and with
            the attention that it will run with. It is called under ``torch.device("meta")``, and once more without it
            for the few methods whose computation depends on values: these run for real, on new weights.
        batch_size: examples.
        seq_len: tokens of the longest one; the batch has padding.
        dtype: dtype of the products, ``float32`` or ``bfloat16`` under autocast.
        optimizer: ``adamw`` or ``sgd``.
        max_grad_norm: whether gradients are clipped; None for not at all.
        checkpointing: recompute layers in the backward pass.
        forward_only: measure an evaluation instead, in which nothing has a gradient.
        loss: returns the loss of a batch of these sizes, by default cross-entropy on all logits. The task's own, see
            ``tasks.blank``, is needed where it does not hold all logits at once.

    Raises:
        ConfigError: nothing is trainable, an unknown dtype or optimiser, or no checkpointing for this architecture.
    """
    import torch

    from fedpeft.device_profiles.live_bytes import VALUES_NEEDED, shapes_only

    _check(batch_size, seq_len, dtype, optimizer)
    loss = loss or _dense_loss(batch_size, seq_len)
    step = _Step(dtype, optimizer, max_grad_norm, checkpointing, forward_only, loss)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = build_model()
        try:
            with shapes_only(model):
                return step.measure(model)
        except VALUES_NEEDED:
            return step.measure(build_model())


@dataclass(frozen=True, slots=True)
class _Step:
    dtype: str
    optimizer: str
    max_grad_norm: float | None
    checkpointing: bool
    forward_only: bool
    loss: Callable[[nn.Module], torch.Tensor]

    def measure(self, model: nn.Module) -> StepMemory:
        import torch

        from fedpeft.device_profiles.live_bytes import LiveBytes, storage_bytes

        weights = [*model.parameters(), *model.buffers()]
        trained = [value for value in model.parameters() if value.requires_grad]
        if not trained and not self.forward_only:
            raise ConfigError(f"{type(model).__name__} has no trainable parameter: attach a method before measuring it")
        model.train(not self.forward_only)
        products = torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16")
        if self.forward_only:
            live = LiveBytes(weights)
            with live, products, torch.no_grad():
                self.loss(model)
            saved, state = 0, []
        else:
            optimizer = self._primed(trained)
            state = [v for one in optimizer.state.values() for v in one.values() if isinstance(v, torch.Tensor)]
            live = LiveBytes([*weights, *state])
            with live, checkpointed(model, self.checkpointing):
                with products:
                    value = self.loss(model)
                saved = live.now
                self._finish(value, trained, optimizer)
        held = storage_bytes(weights)
        return StepMemory(
            weights_bytes=held,
            gradient_bytes=0 if self.forward_only else storage_bytes(trained),
            optimizer_bytes=storage_bytes(state),
            saved_bytes=saved,
            step_bytes=live.peak,
            moved_bytes=live.swept,
        )

    def _primed(self, trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return an optimiser that has its state, as it has from the second step on."""
        import torch

        kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        optimizer: torch.optim.Optimizer = kinds[self.optimizer](trained, lr=1e-3)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return optimizer

    def _finish(self, loss: torch.Tensor, trained: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        import torch

        loss.backward()
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _check(batch_size: int, seq_len: int, dtype: str, optimizer: str) -> None:
    problems = [
        f"{name} must be at least 1, got {value}"
        for name, value in (("batch_size", batch_size), ("seq_len", seq_len))
        if value < 1
    ]
    if dtype not in ("float32", "bfloat16"):
        problems.append(f"dtype must be float32 or bfloat16, got {dtype!r}")
    if optimizer not in ("adamw", "sgd"):
        problems.append(f"optimizer must be adamw or sgd, got {optimizer!r}")
    if problems:
        raise ConfigError(problems)


def _dense_loss(batch_size: int, seq_len: int) -> Callable[[nn.Module], torch.Tensor]:
    def loss(model: nn.Module) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        ids = torch.zeros(batch_size, seq_len, dtype=torch.long)
        mask = torch.ones_like(ids)
        # Without any padding transformers would leave the mask out.
        mask[0, seq_len // 2 + 1 :] = 0
        logits = model(input_ids=ids, attention_mask=mask).logits.float().flatten(0, -2)
        return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    return loss
