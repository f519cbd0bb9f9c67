"""What a client measures for the server before it trains: layer scores, curvature, the first gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.client.fitting import frozen_weight
from fedpeft.client.probes import hessian_product, layer_scores
from fedpeft.client.trainer import autocast
from fedpeft.core.metrics import LAYER_SCORES
from fedpeft.core.pairs import Pair, lora_pairs
from fedpeft.core.spectrum import density, selected_share
from fedpeft.core.types import Tensors
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
    """

    metrics: Mapping[str, float | list[float]] = field(default_factory=dict)
    tensors: Tensors | None = None
    passes: float = 0.0


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
    count = min(len(rows), GRADIENT_EXAMPLES if probe == "gradient" else SCORED_EXAMPLES)
    chosen = rng.choice(rows, size=count, replace=False)
    if probe == "layers":
        scores = layer_scores(tunable.model, task.collate(chosen), dtype=dtype)
        return Measured(metrics={LAYER_SCORES: [float(score) for score in scores]}, passes=1 / 3)
    if probe == "curvature":
        share = curvature_share(tunable, parameters, task, chosen, dtype=dtype, rng=rng)
        return Measured(metrics={"layer-share": share}, passes=1 + 2 * LANCZOS_STEPS)
    tensors = gradient_factors(tunable, task, chosen, dtype=dtype)
    return Measured(tensors=tensors, passes=count / SCORED_EXAMPLES)


def curvature_share(
    tunable: Tunable,
    parameters: Sequence[torch.Tensor],
    task: Task,
    rows: np.ndarray,
    *,
    dtype: str,
    rng: np.random.Generator,
) -> float:
    """Return FedPepTAO's share of layers from the Hessian's eigenvalue density (``core.spectrum.selected_share``)."""
    batch = task.collate(rows)
    was_training = tunable.model.training
    tunable.model.eval()
    try:
        product = hessian_product(lambda: task.per_example_loss(tunable.model, batch).mean(), parameters, dtype=dtype)
        dim = sum(parameter.numel() for parameter in parameters)
        nodes, weights = density(product, dim, num_steps=min(LANCZOS_STEPS, dim), rng=rng)
    finally:
        tunable.model.train(was_training)
    return selected_share(nodes, weights)


def gradient_factors(tunable: Tunable, task: Task, rows: np.ndarray, *, dtype: str) -> Tensors:
    """Return rank-r factors of the loss's gradient with respect to each adapted weight, head tensors not among them.

        G = dL / dW, (out, in);   lora_B = U_r S_r, lora_A = V_r^T of its singular value decomposition

    Args:
        tunable: the model; its adapted modules must hold float weights.
        task: batches and losses.
        rows: examples that the loss is the mean of.
        dtype: dtype of the products.
    """
    import torch

    pairs = lora_pairs(tunable.shared, strict=False)
    tunable.model.eval()
    with _opened(tunable, pairs) as weights:
        with autocast(dtype):
            loss = task.per_example_loss(tunable.model, task.collate(rows)).mean()
        gradients = torch.autograd.grad(loss, [weight for weight, _ in weights])
    factors: Tensors = {}
    for pair, (_, transposed), gradient in zip(pairs, weights, gradients, strict=True):
        rank = tunable.shared[pair.a].shape[0]
        dense = (gradient.T if transposed else gradient).double()
        u, s, vt = torch.linalg.svd(dense, full_matrices=False)
        factors[pair.b] = (u[:, :rank] * s[:rank]).float().numpy()
        factors[pair.a] = vt[:rank].float().numpy()
    return {key: np.ascontiguousarray(factors[key]) for key in sorted(factors)}


@contextmanager
def _opened(tunable: Tunable, pairs: Sequence[Pair]) -> Iterator[list[tuple[nn.Parameter, bool]]]:
    """Let the adapted weights have gradients while the context lasts."""
    weights = [frozen_weight(tunable.model, pair.module) for pair in pairs]
    try:
        for weight, _ in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight, _ in weights:
            weight.requires_grad_(False)
