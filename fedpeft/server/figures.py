"""Figures that a record makes of clients' claims, which nobody has checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedpeft.core.events import ClientReplied
from fedpeft.core.types import Cost


def merit(metrics: Mapping[str, float]) -> float:
    """Return what makes one evaluation better than another: accuracy, or low perplexity."""
    return -metrics["perplexity"] if "perplexity" in metrics else metrics.get("accuracy", 0.0)


def is_evaluation(metrics: Mapping[str, Any]) -> bool:
    """Return whether an evaluation can be summed; a stock strategy has no guard that saw to it."""
    return all(isinstance(metrics.get(name), (int, float)) for name in ("eval-accuracy", "eval-loss"))


def number(value: object) -> float:
    """Return a claimed metric as a number that JSON and arithmetic survive; the guard judges it elsewhere."""
    sound = isinstance(value, (int, float)) and abs(value) <= 1e18
    return float(value) if sound else 0.0  # type: ignore[arg-type]


def sum_of(events: Sequence[ClientReplied], metric: str) -> float:
    """Return the sum of one metric over replies."""
    return sum(number(event.metrics.get(metric)) for event in events)


def mean_loss(events: Sequence[ClientReplied]) -> float | None:
    """Return the mean training loss weighted by examples, None without a reply that tells one."""
    told = [event for event in events if "train-loss" in event.metrics]
    examples = sum(event.num_examples for event in told)
    return sum(event.num_examples * number(event.metrics["train-loss"]) for event in told) / examples if told else None


def total(parts: Iterable[float | None]) -> float | None:
    """Return the sum of what is known, None where nothing is."""
    known = [part for part in parts if part is not None]
    return round(sum(known), 3) if known else None


def rounded(value: float | None, digits: int) -> float | None:
    """Return a number rounded, None for None."""
    return None if value is None else round(value, digits)


def legs(cost: Cost) -> dict[str, float]:
    """Return an exchange's seconds by leg."""
    return {"down": round(cost.down_s, 6), "compute": round(cost.compute_s, 6), "up": round(cost.up_s, 6)}


def predicted_columns(event: ClientReplied) -> dict[str, Any]:
    """Return what was predicted for a real device, to stand beside what was measured; {} in a simulation."""
    cost = event.predicted
    if cost is None:
        return {}
    return {
        "predicted_s": legs(cost),
        "predicted_memory_mb": rounded(cost.peak_memory_mb, 1),
        "predicted_energy_j": rounded(cost.energy_j, 3),
    }
