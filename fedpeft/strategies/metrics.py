"""Figures over clients, from checked replies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import MetricRecord

from fedpeft.core import wire
from fedpeft.core.metrics import perplexity
from fedpeft.core.types import ClientUpdate

MOST_GROUPS = 32


def mean_train_metrics(updates: list[ClientUpdate]) -> MetricRecord:
    """Return the example-weighted mean of each metric that every client sent, and the sum of examples."""
    weights = np.array([u.num_examples for u in updates], dtype=np.float64)
    names = set.intersection(*(set(u.metrics) for u in updates)) - {wire.NUM_EXAMPLES}
    means = {name: float(np.average([u.metrics[name] for u in updates], weights=weights)) for name in sorted(names)}
    return MetricRecord({**means, wire.NUM_EXAMPLES: int(weights.sum())})


def worst_decile(values: list[float]) -> float:
    """Return the mean of the lowest tenth of the values, at least one of them.

    Example:
        >>> worst_decile([0.9, 0.2, 0.8])
        0.2
    """
    count = math.ceil(len(values) / 10)
    return float(np.mean(sorted(values)[:count]))


def group_accuracies(
    prefix: str, names: Sequence[str], correct: Sequence[float], count: Sequence[float]
) -> dict[str, float]:
    """Return ``prefix/<group>`` for every group that has examples.

    {} for one group, of which the whole says the same, and for more than `MOST_GROUPS`: where groups are people, a
    figure for each would bury the others.
    """
    if not 1 < len(names) <= MOST_GROUPS:
        return {}
    return {f"{prefix}/{name}": float(c / n) for name, c, n in zip(names, correct, count, strict=True) if n}


def aggregate_client_evaluations(
    results: Mapping[int, Mapping[str, Any]], task_kind: str = "classification"
) -> MetricRecord | None:
    """Return the clients' evaluation as one record, None without results.

    Means weigh clients equally, as a client's user would; ``_worst_decile`` is the mean of the worst tenth;
    ``group-correct`` and ``group-count`` are sums over clients. A classification has ``client_accuracy_mean``,
    ``client_accuracy_worst_decile`` and ``client_loss_mean``; a language model ``client_perplexity_mean``,
    ``client_perplexity_worst_decile``, ``client_token_accuracy_mean`` and ``client_loss_mean``, where a client's
    perplexity is that of all its tokens.

    Args:
        results: the checked metrics of each client, by client id.
        task_kind: ``classification`` or ``causal_lm``.
    """
    if not results:
        return None
    ordered = [results[client] for client in sorted(results)]
    accuracies = [float(r["eval-accuracy"]) for r in ordered]
    losses = [float(r["eval-loss"]) for r in ordered]
    record: dict[str, float | list[float]]
    if task_kind == "causal_lm":
        perplexities = [perplexity(loss) for loss in losses]
        record = {
            "client_perplexity_mean": float(np.mean(perplexities)),
            "client_perplexity_worst_decile": -worst_decile([-one for one in perplexities]),
            "client_token_accuracy_mean": float(np.mean(accuracies)),
        }
    else:
        record = {
            "client_accuracy_mean": float(np.mean(accuracies)),
            "client_accuracy_worst_decile": worst_decile(accuracies),
        }
    record |= {"client_loss_mean": float(np.mean(losses)), "num-clients": float(len(ordered))}
    if len({len(r.get("group-count", [])) for r in ordered}) == 1:
        for name in ("group-correct", "group-count"):
            record[name] = [float(v) for v in np.sum([r.get(name, []) for r in ordered], axis=0)]
    return MetricRecord(record)  # type: ignore[arg-type]
