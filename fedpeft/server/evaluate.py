"""The server's evaluation on its held-out split, cut into parts that an engine may spread over workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fedpeft.core.events import EvaluationProgress, Observer, tell
from fedpeft.core.metrics import perplexity
from fedpeft.core.types import Tensors
from fedpeft.strategies.metrics import group_accuracies
from fedpeft.tasks.base import Scores

ShardMap = Callable[[Tensors, Sequence[int]], Iterator[tuple[int, Scores]]]
"""Evaluates some parts of the held-out split, by number, and yields (part, scores) as they come."""


def evaluate_global(
    tensors: Tensors,
    *,
    num_shards: int,
    shard_map: ShardMap,
    group_names: Sequence[str],
    task_kind: str,
    server_round: int,
    observers: tuple[Observer, ...],
) -> tuple[dict[str, float], float]:
    """Return the metrics of the global tensors and the CPU seconds they took.

    The parts are added in their own order, whichever came first, so that the figures do not depend on the number of
    workers.
    """
    parts: dict[int, Scores] = {}
    for shard, scores in shard_map(tensors, range(num_shards)):
        parts[shard] = scores
        tell(observers, EvaluationProgress(server_round=server_round, done=len(parts), total=num_shards))
    total = _sum(parts, len(group_names))
    return figures(total, group_names, task_kind), total.cpu_s


def mean_loss(tensors: Tensors, *, shards: Sequence[int], shard_map: ShardMap, num_groups: int) -> tuple[float, float]:
    """Return the mean loss on some parts, and the CPU seconds it took; for strategies that search.

    Args:
        tensors: what ``FedPeft.model_tensors`` returns.
        shards: numbers of the parts.
        shard_map: evaluates them.
        num_groups: how many groups the data has.
    """
    total = _sum(dict(shard_map(tensors, shards)), num_groups)
    return total.mean_loss, total.cpu_s


def _sum(parts: Mapping[int, Scores], num_groups: int) -> Scores:
    """Add scores in the order of their parts, whichever came first."""
    total = Scores(loss=0.0, correct=np.zeros(num_groups), count=np.zeros(num_groups))
    for shard in sorted(parts):
        total = total + parts[shard]
    return total


def figures(scores: Scores, group_names: Sequence[str], task_kind: str) -> dict[str, float]:
    """Return what is put on record of an evaluation.

    ``accuracy`` and ``loss`` of a classification; ``perplexity``, ``token_accuracy`` and ``loss`` of a language model,
    over all tokens; either accuracy also by group, ``accuracy/<group>``.

    Args:
        scores: sums over all examples.
        group_names: names of the groups.
        task_kind: ``classification`` or ``causal_lm``.
    """
    causal = task_kind == "causal_lm"
    name = "token_accuracy" if causal else "accuracy"
    found = {"perplexity": perplexity(scores.mean_loss)} if causal else {}
    found |= {name: scores.accuracy, "loss": scores.mean_loss}
    return found | group_accuracies(name, group_names, list(scores.correct), list(scores.count))
