"""What a client measures for the server before it trains: layer scores, curvature, the first gradient."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.client.probes import hessian_product, layer_scores
from fedpeft.client.trainer import autocast
from fedpeft.core.metrics import LAYER_SCORES
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.spectrum import density, selected_share
from fedpeft.core.types import Tensors
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.methods.base import Tunable
from fedpeft.tasks.base import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

SCORED_EXAMPLES = 8
LANCZOS_STEPS = 50
GRADIENT_EXAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured.

    Attributes:
        metrics: joins the reply's metrics.
        tensors: takes the place of the reply's tensors, None where training goes on.
        passes: how many training steps on ``SCORED_EXAMPLES`` examples the measurement is worth.
        width: tokens of the longest example that was measured.
        cpu_s: CPU seconds that it took.
    """

    metrics: Mapping[str, float | list[float]] = field(default_factory=dict)
    tensors: Tensors | None = None
    passes: float = 0.0
    width: int = 0
    cpu_s: float = 0.0

    def flops(self, step: StepFlops) -> float:
        """Return the operations that the measurement took, given the cost of a training step."""
        return self.passes * step.step(SCORED_EXAMPLES, self.width)


def measure(
    probe: str,
    tunable: Tunable,
    parameters: Sequence[torch.Tensor],
    task: Task,
    rows: np.ndarray,
    *,
    dtype: str,
    rng: np.random.Generator,
) -> Measured:
    """Measure what the orders ask for, on a few of the client's examples.

    Args:
        probe: ``layers``, ``curvature``, ``gradient`` or "" (see ``core.orders.Orders``).
        tunable: the model, loaded.
        parameters: what trains.
        task: batches and losses.
        rows: the client's training rows.
        dtype: dtype of the products.
        rng: draws the examples and the Lanczos start.
    """
    if not probe:
        return Measured()
    started = time.process_time()
    count = min(len(rows), GRADIENT_EXAMPLES if probe == "gradient" else SCORED_EXAMPLES)
    chosen = rng.choice(rows, size=count, replace=False)
    metrics: dict[str, float | list[float]]
    tensors = None
    if probe == "layers":
        scores = layer_scores(tunable.model, task.collate(chosen), dtype=dtype)
        metrics, passes = {LAYER_SCORES: [float(score) for score in scores]}, 1 / 3
    elif probe == "curvature":
        share = curvature_share(tunable, parameters, task, chosen, dtype=dtype, rng=rng)
        metrics, passes = {"layer-share": share}, 1.0 + 2 * LANCZOS_STEPS
    else:
        tensors, loss = gradient_factors(tunable, task, chosen, dtype=dtype)
        metrics, passes = {"train-loss": loss}, count / SCORED_EXAMPLES
    return Measured(
        metrics=metrics,
        tensors=tensors,
        passes=passes,
        width=int(task.lengths(chosen).max()),
        cpu_s=time.process_time() - started,
    )


def curvature_share(
    tunable: Tunable,
    parameters: Sequence[torch.Tensor],
    task: Task,
    rows: np.ndarray,
    *,
    dtype: str,
    rng: np.random.Generator,
) -> float:
    """Return FedPepTAO's share of layers from the Hessian's eigenvalue density (``core.spectrum.selected_share``).

    The Hessian is that with respect to the adapter's tensors; those of a head are left out.

    Differs: eigenvalues are divided by the largest in magnitude before they are scanned, so that a loss and a thousand
    times that loss keep as many layers; the paper's scan is in units of the loss, and finds nothing in small encoders.
    """
    batch = task.collate(rows)
    was_training = tunable.model.training
    tunable.model.eval()
    try:
        adapter = [value for key, value in tunable.shared.items() if key not in tunable.head_keys]
        trained = {id(parameter) for parameter in parameters}
        chosen = [value for value in adapter if id(value) in trained]
        product = hessian_product(lambda: task.per_example_loss(tunable.model, batch).mean(), chosen, dtype=dtype)
        dim = sum(parameter.numel() for parameter in chosen)
        nodes, weights = density(product, dim, num_steps=min(LANCZOS_STEPS, dim), rng=rng)
    finally:
        tunable.model.train(was_training)
    return selected_share(nodes / (np.abs(nodes).max() or 1.0), weights)


def gradient_factors(tunable: Tunable, task: Task, rows: np.ndarray, *, dtype: str) -> tuple[Tensors, float]:
    """Return rank-r factors of the loss's gradient with respect to each adapted weight, and the loss.

        G = dL / dW = sum_t g_t x_t^T, (out, in);   lora_B = U_r S_r, lora_A = V_r^T of its singular value decomposition

    x_t and g_t are the input of the adapted module at token t and the gradient of its output there. The weights
    themselves are not asked for a gradient, so that they may be stored in any form and layout.

    Args:
        tunable: the model, loaded; its mode is restored.
        task: batches and losses.
        rows: examples that the loss is the mean of.
        dtype: dtype of the products; sums are float32.
    """
    import torch

    pairs = lora_pairs(tunable.shared, strict=False)
    layers: list[Any] = [tunable.model.get_submodule(p.module.removeprefix("base_model.model.")) for p in pairs]
    shapes, device = [(tunable.shared[p.b].shape[0], tunable.shared[p.a].shape[1]) for p in pairs], tunable.device
    sums = [torch.zeros(shape, device=device) for shape in shapes]
    was_training, total = tunable.model.training, 0.0
    tunable.model.eval()
    try:
        # Part by part, so that no more activations are alive than in a small training step.
        for part in np.array_split(rows, -(-len(rows) // SCORED_EXAMPLES)):
            with _watched([layer.base_layer for layer in layers]) as seen, autocast(dtype, device):
                loss = task.per_example_loss(tunable.model, task.collate(part)).sum() / len(rows)
            total += float(loss.detach())
            gradients = torch.autograd.grad(loss, [one.probe for one in seen], allow_unused=True)
            for one, g in zip(seen, gradients, strict=True):
                if g is not None:
                    sums[one.index] += g.flatten(0, -2).float().T @ one.x.flatten(0, -2).float()
    finally:
        tunable.model.train(was_training)
    factors: Tensors = {}
    for pair, gradient in zip(pairs, sums, strict=True):
        rank = tunable.shared[pair.a].shape[0]
        u, s, vt = torch.linalg.svd(gradient.double(), full_matrices=False)
        factors[pair.b] = (u[:, :rank] * s[:rank]).float().cpu().numpy()
        factors[pair.a] = vt[:rank].float().cpu().numpy()
    return {key: np.ascontiguousarray(factors[key]) for key in sorted(factors)}, total


@dataclass(frozen=True, slots=True)
class _Seen:
    """One call of a watched layer: its number, its input, and a zero that was added to its output."""

    index: int
    x: torch.Tensor
    probe: torch.Tensor


@contextmanager
def _watched(layers: Sequence[nn.Module]) -> Iterator[list[_Seen]]:
    """Note inputs of layers and open their outputs to gradients while the context lasts."""
    seen: list[_Seen] = []

    def watch(index: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            probe = output.new_zeros(output.shape, requires_grad=True)
            seen.append(_Seen(index, args[0].detach(), probe))
            return output + probe

        return hook

    handles = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
