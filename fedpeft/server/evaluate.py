"""The server's evaluation on its held-out split, cut into parts that an engine may spread over workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedpeft.core.events import EvaluationProgress, Observer, tell
from fedpeft.core.types import Tensors
from fedpeft.strategies.metrics import group_accuracies
from fedpeft.tasks.base import Scores

ShardMap = Callable[[Tensors, int], Iterator[tuple[int, Scores]]]
"""Evaluates parts 0 .. count - 1 of the held-out split and yields (part, scores) as they come."""


def evaluate_global(
    tensors: Tensors,
    *,
    num_shards: int,
    shard_map: ShardMap,
    group_names: Sequence[str],
    server_round: int,
    observers: tuple[Observer, ...],
) -> tuple[dict[str, float], float]:
    """Return the metrics of the global tensors and the CPU seconds they took.

    The parts are added in their own order, whichever came first, so that the figures do not depend on the number of
    workers.
    """
    parts: dict[int, Scores] = {}
    for shard, scores in shard_map(tensors, num_shards):
        parts[shard] = scores
        tell(observers, EvaluationProgress(server_round=server_round, done=len(parts), total=num_shards))
    zeros = np.zeros(len(group_names))
    total = Scores(loss=0.0, correct=zeros, count=zeros)
    for shard in sorted(parts):
        total = total + parts[shard]
    metrics = {"accuracy": total.accuracy, "loss": total.mean_loss}
    if len(group_names) > 1:
        metrics |= group_accuracies("accuracy", group_names, total.correct, total.count)
    return metrics, total.cpu_s
