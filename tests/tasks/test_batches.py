"""Batches: every row once, steps to the number, less padding than chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedpeft.tasks.batches import evaluation_batches, length_sorted_batches, shards, training_batches

LENGTHS = np.random.default_rng(0).integers(3, 60, size=503)
ROWS = np.random.default_rng(1).permutation(5000)[:503]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def padding(batches: list[np.ndarray]) -> int:
    """Return tokens that only fill up."""
    lengths = dict(zip(ROWS.tolist(), LENGTHS.tolist(), strict=True))
    return sum(len(b) * max(lengths[r] for r in b.tolist()) - sum(lengths[r] for r in b.tolist()) for b in batches)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 503, 1000])
@pytest.mark.parametrize("pool", [1, 8])
def test_every_row_comes_once_an_epoch(batch_size: int, pool: int) -> None:
    batches = length_sorted_batches(ROWS, LENGTHS, batch_size, generator(), pool)
    assert sorted(np.concatenate(batches).tolist()) == sorted(ROWS.tolist())
    assert all(1 <= len(b) <= batch_size for b in batches)
    assert len(batches) == -(-503 // batch_size)


def test_sorting_saves_most_of_the_padding() -> None:
    """Random batches of 16 from lengths 3..59 pad about half; pools of eight batches less than a third of that."""
    shuffled = generator().permutation(ROWS)
    random_batches = [shuffled[i : i + 16] for i in range(0, 503, 16)]
    assert padding(length_sorted_batches(ROWS, LENGTHS, 16, generator())) < padding(random_batches) / 3


def test_batches_come_in_no_order_of_length() -> None:
    first = [length_sorted_batches(ROWS, LENGTHS, 16, generator(seed))[0] for seed in range(12)]
    lengths = dict(zip(ROWS.tolist(), LENGTHS.tolist(), strict=True))
    means = [np.mean([lengths[r] for r in b.tolist()]) for b in first]
    assert np.std(means) > 5


def test_same_generator_same_batches() -> None:
    one, other, third = (length_sorted_batches(ROWS, LENGTHS, 16, generator(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, third, strict=True))


@pytest.mark.parametrize("num_steps", [1, 6, 7, 8, 20])
def test_training_takes_exactly_so_many_steps(num_steps: int) -> None:
    """10 rows in batches of 4: three steps an epoch, and every epoch holds each row once."""
    rows, lengths = np.arange(10) + 100, np.arange(10) + 1
    batches = list(training_batches(rows, lengths, 4, num_steps, generator()))
    assert len(batches) == num_steps
    for epoch in itertools.islice(range(num_steps // 3), 3):
        assert sorted(np.concatenate(batches[3 * epoch : 3 * epoch + 3]).tolist()) == rows.tolist()


def test_epochs_differ() -> None:
    rows, lengths = np.arange(64), np.ones(64, int)
    batches = list(training_batches(rows, lengths, 8, 16, generator()))
    assert any(not np.array_equal(a, b) for a, b in zip(batches[:8], batches[8:], strict=True))


def test_evaluation_batches_cover_all_rows_shortest_first() -> None:
    batches = evaluation_batches(ROWS, LENGTHS, 16)
    assert sorted(np.concatenate(batches).tolist()) == sorted(ROWS.tolist())
    lengths = dict(zip(ROWS.tolist(), LENGTHS.tolist(), strict=True))
    order = [lengths[r] for r in np.concatenate(batches).tolist()]
    assert order == sorted(order)
    assert all(np.array_equal(a, b) for a, b in zip(batches, evaluation_batches(ROWS, LENGTHS, 16), strict=True))


@pytest.mark.parametrize("count", [1, 3, 8, 32, 100])
def test_shards_cover_and_balance(count: int) -> None:
    batches = evaluation_batches(ROWS, LENGTHS, 16)
    parts = shards(batches, count)
    assert len(parts) == min(count, len(batches))
    assert sorted(np.concatenate([b for part in parts for b in part]).tolist()) == sorted(ROWS.tolist())
    assert all(parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    lengths = dict(zip(ROWS.tolist(), LENGTHS.tolist(), strict=True))
    if count == 3:
        tokens = [sum(lengths[r] for b in part for r in b.tolist()) for part in parts]
        assert max(tokens) < 1.15 * min(tokens)
