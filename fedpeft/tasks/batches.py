"""Batches of rows of like length: padding is computed but teaches nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def length_sorted_batches(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator, pool: int = 8
) -> list[np.ndarray]:
    """Return one epoch of batches of like length.

    Rows are shuffled, sorted by length inside pools of ``pool`` batches, and the batches shuffled. Every row appears
    once; the last batch of a pool may be smaller. Sorting inside pools keeps most of the randomness and saves most of
    the padding.

    Args:
        rows: (n,) row numbers.
        lengths: (n,) tokens of each row.
        batch_size: rows a batch.
        rng: source of the shuffles.
        pool: batches a pool.
    """
    order = rng.permutation(len(rows))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * pool):
        chunk = order[start : start + batch_size * pool]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches.extend(rows[chunk[i : i + batch_size]] for i in range(0, len(chunk), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def training_batches(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, num_steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield exactly ``num_steps`` batches, epoch after epoch."""
    done = 0
    while done < num_steps:
        for batch in length_sorted_batches(rows, lengths, batch_size, rng):
            if done == num_steps:
                return
            yield batch
            done += 1


def evaluation_batches(rows: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return all rows in batches of like length, the same ones every time."""
    order = rows[np.argsort(lengths, kind="stable")]
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def shards(batches: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
    """Deal batches out into ``count`` shards of about equal tokens.

    Their number depends on the config, never on workers.
    """
    return [batches[i::count] for i in range(min(count, len(batches)))]
