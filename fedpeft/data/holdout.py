"""Rows that training never sees: the server's held-out split, and each client's own test rows."""

from __future__ import annotations

import numpy as np

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.core.seeds import rng
from fedpeft.data.table import Table


def hold_out(table: Table, fraction_or_count: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows of ``table`` into training rows and held-out rows, stratified by (group, label).

    Each stratum gives its share, ``count * size / n``, rounded by the largest remainders so that the shares add up to
    ``count`` exactly (Hamilton's method; on a tie the earlier stratum gives one more).

    Args:
        table: what to split.
        fraction_or_count: a float in (0, 1) is a share of the rows, an int in 1 .. n - 1 is a number of rows.
        seed: of the draw.

    Returns:
        (train_rows, eval_rows), int64, each sorted; together every row once.

    Raises:
        ConfigError: the value is out of range, or leaves no row on one side.

    Example:
        >>> train, held_out = hold_out(table, 0.1, seed=0)     # doctest: +SKIP
    """
    count = _count(fraction_or_count, len(table))
    strata = table.strata
    draw = rng(seed, "hold_out")
    chosen = np.zeros(len(table), dtype=bool)
    stratum_ids, sizes = np.unique(strata, return_counts=True)
    for stratum, take in zip(stratum_ids, largest_remainders(sizes, count), strict=True):
        rows = np.flatnonzero(strata == stratum)
        chosen[draw.permutation(rows)[:take]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def largest_remainders(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return how many of ``count`` seats each stratum gets, proportional to its size and never above it.

    ``floor(count * size / n)`` each, then one more for the largest remainders.

    Args:
        sizes: int (strata,), sizes of the strata; n is their sum.
        count: seats in all, 0 .. n.
    """
    # Whole numbers throughout: floats would break ties by rounding noise.
    scaled = sizes.astype(np.int64) * count
    seats, remainders = np.divmod(scaled, int(sizes.sum()))
    short = count - int(seats.sum())
    seats[np.argsort(-remainders, kind="stable")[:short]] += 1
    return seats


def client_split(indices: np.ndarray, fraction: float, seed: int, client_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Split one client's rows into rows to train on and rows to test on.

    The test part has ``floor(fraction * n)`` rows: none where a client holds too few, while training always keeps one.

    Args:
        indices: row numbers that the client holds, int (n,).
        fraction: share of the test part, in [0, 1).
        seed: the run's seed.
        client_id: its number, so that clients draw independently.

    Returns:
        (train, test), int64, each in the order of ``indices``; together every row once.

    Raises:
        ConfigError: fraction is not in [0, 1).
        DataError: the client holds nothing.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"the fraction of client test rows must be in [0, 1), got {fraction}")
    if len(indices) == 0:
        raise DataError(f"client {client_id} holds no examples: choose a partition without empty clients")
    num_test = num_test_rows(len(indices), fraction)
    test = np.zeros(len(indices), dtype=bool)
    test[rng(seed, "client_split", client_id).permutation(len(indices))[:num_test]] = True
    rows = np.asarray(indices, dtype=np.int64)
    return rows[~test], rows[test]


def num_test_rows(num_rows: int, fraction: float) -> int:
    """Return how many of a client's rows ``client_split`` keeps for testing: ``floor(fraction * num_rows)``."""
    return int(fraction * num_rows)


def _count(fraction_or_count: float, num_rows: int) -> int:
    if isinstance(fraction_or_count, bool) or not isinstance(fraction_or_count, int | float):
        raise ConfigError(f"the held-out part must be a share or a number of rows, got {fraction_or_count!r}")
    if isinstance(fraction_or_count, int):
        count = fraction_or_count
    elif 0 < fraction_or_count < 1:
        count = round(fraction_or_count * num_rows)
    else:
        raise ConfigError(f"a held-out share must be between 0 and 1, got {fraction_or_count} (write 500 for 500 rows)")
    if not 1 <= count < num_rows:
        raise ConfigError(f"the held-out part must have 1..{num_rows - 1} of {num_rows} rows, got {count}")
    return count
