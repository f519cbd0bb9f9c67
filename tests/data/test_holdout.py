"""Held-out rows: stratified, exact in number, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.data.holdout import client_split, hold_out, largest_remainders, num_test_rows
from fedpeft.data.table import Table


def _table(sizes: dict[tuple[int, int], int]) -> Table:
    pairs = [pair for pair, size in sizes.items() for _ in range(size)]
    return Table(
        texts=[("t",)] * len(pairs),
        groups=np.array([group for group, _ in pairs], dtype=np.int64),
        labels=np.array([label for _, label in pairs], dtype=np.int64),
        label_names=("no", "yes"),
        group_names=("a", "b"),
    )


TABLE = _table({(0, 0): 50, (0, 1): 30, (1, 0): 15, (1, 1): 5})


@pytest.mark.parametrize("amount", [1, 7, 10, 99, 0.01, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_is_on_one_side_and_the_number_is_exact(amount: float, seed: int) -> None:
    train, held = hold_out(TABLE, amount, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(100))
    assert len(held) == (amount if isinstance(amount, int) else round(100 * amount))
    assert train.tolist() == sorted(train.tolist()) and held.tolist() == sorted(held.tolist())


def test_strata_give_their_share() -> None:
    """Ten of 100 rows in strata of 50, 30, 15, 5: quotas 5, 3, 1.5, 0.5. The floors make 9; the tie of the two halves
    goes to the earlier stratum: 5, 3, 2, 0."""
    _, held = hold_out(TABLE, 10, seed=3)
    strata = TABLE.groups[held] * 2 + TABLE.labels[held]
    assert np.bincount(strata, minlength=4).tolist() == [5, 3, 2, 0]


def test_largest_remainders_by_hand() -> None:
    """Seven seats for 6, 3, 3 of 12: quotas 3.5, 1.75, 1.75; floors 3, 1, 1; the two left go to the .75s."""
    assert largest_remainders(np.array([6, 3, 3]), 7).tolist() == [3, 2, 2]
    assert largest_remainders(np.array([1, 1, 1]), 0).tolist() == [0, 0, 0]
    assert largest_remainders(np.array([4, 1]), 5).tolist() == [4, 1]


def test_the_seed_decides() -> None:
    assert hold_out(TABLE, 20, 5)[1].tolist() == hold_out(TABLE, 20, 5)[1].tolist()
    assert hold_out(TABLE, 20, 5)[1].tolist() != hold_out(TABLE, 20, 6)[1].tolist()


@pytest.mark.parametrize("amount", [0, 100, -1, 0.0, 1.0, 1.5, 0.001, True, "10", float("nan")])
def test_amounts_that_leave_one_side_empty_are_refused(amount: object) -> None:
    with pytest.raises(ConfigError, match=r"got"):
        hold_out(TABLE, amount, 0)  # type: ignore[arg-type]


ROWS = np.array([40, 3, 17, 8, 99, 21, 5, 60, 2, 11])


def test_client_rows_are_split_without_loss() -> None:
    """floor(0.25 x 10) = 2 rows to test on."""
    train, test = client_split(ROWS, 0.25, seed=0, client_id=7)
    assert len(test) == 2 and sorted([*train, *test]) == sorted(ROWS) and train.dtype == test.dtype == np.int64
    assert [row for row in ROWS if row in set(train)] == train.tolist()


def test_training_is_never_empty() -> None:
    """One row at 0.99: floor(0.99) = 0 to test on. Two rows: floor(1.98) = 1."""
    assert [len(part) for part in client_split(ROWS[:1], 0.99, 0, 0)] == [1, 0]
    assert [len(part) for part in client_split(ROWS[:2], 0.99, 0, 0)] == [1, 1]
    assert [len(part) for part in client_split(ROWS, 0.0, 0, 0)] == [10, 0]


def test_sizes_of_test_parts_are_known_without_splitting() -> None:
    """floor(0.3 x (1, 3, 4, 10)) = 0, 0, 1, 3."""
    assert [num_test_rows(n, 0.3) for n in (1, 3, 4, 10)] == [0, 0, 1, 3]
    for n in range(1, 11):
        for fraction in (0.0, 0.1, 0.3, 0.5, 0.7, 0.99):
            assert len(client_split(ROWS[:n], fraction, 0, 0)[1]) == num_test_rows(n, fraction) < n


def test_clients_draw_independently_and_repeatably() -> None:
    draws = [tuple(client_split(ROWS, 0.5, 0, client)[1]) for client in range(5)]
    assert draws == [tuple(client_split(ROWS, 0.5, 0, client)[1]) for client in range(5)] and len(set(draws)) == 5


def test_client_splits_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"in \[0, 1\), got 1"):
        client_split(ROWS, 1.0, 0, 0)
    with pytest.raises(DataError, match="client 3 holds no examples"):
        client_split(ROWS[:0], 0.5, 0, 3)
