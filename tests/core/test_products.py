"""What the product rules share: sums, stacks, rows to fill, factors to merge."""

from __future__ import annotations

import numpy as np
import pytest
from factor_updates import A, B, tensors
from low_rank import assert_close, dense, parts_of, random_factors, summed

from fedpeft.core.errors import WireError
from fedpeft.core.factors import Factors, distance
from fedpeft.core.pairs import FactorError, lora_pairs
from fedpeft.core.products import fill_rows, for_client, merge_tensors, merged_change, stacked, to_float32, total
from fedpeft.core.types import ClientInfo


def test_a_total_has_no_more_columns_than_it_needs() -> None:
    parts, weights = parts_of(7, 6, (2, 3))
    whole = total([*parts, *parts], [*weights, *weights])
    assert whole.rank == 5
    assert_close(dense(whole), 2 * summed(parts, weights))


def test_what_cancels_leaves_nothing_but_what_is_small_stays() -> None:
    """Rounding of a sum of norm 1 is 1e-16; a true change of 1e-9 is far above it."""
    rng = np.random.default_rng(0)
    part, small = random_factors(rng, 6, 5, 3), random_factors(rng, 6, 5, 1)
    assert total([part, part, part], [0.3, 0.7, -1.0]).rank == 0
    rest = total([part, small, part], [1.0, 1e-9, -1.0])
    assert rest.rank == 1
    assert distance(rest, Factors(b=1e-9 * small.b, a=small.a)) < 1e-5 * 1e-9 * np.linalg.norm(dense(small))


@pytest.mark.parametrize(("ranks", "rank"), [((1, 2), 3), ((2, 3), 5), ((3, 3), 5), ((5, 5, 5), 5)])
def test_a_stack_is_compressed_only_where_it_is_wider_than_the_weight(ranks: tuple[int, ...], rank: int) -> None:
    parts, weights = parts_of(6, 5, ranks)
    stack = stacked(parts, weights)
    assert stack.rank == rank
    assert_close(dense(stack), summed(parts, weights))


@pytest.mark.parametrize("filled", [0, 1, 3])
def test_filled_rows_are_orthonormal_and_leave_the_others(filled: int) -> None:
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 3)))[0].T
    rows[filled:] = 0
    got = fill_rows(rows, filled, np.random.default_rng(2))
    assert np.array_equal(got[:filled], rows[:filled])
    assert np.allclose(got @ got.T, np.eye(3), atol=1e-14)


def test_merged_factors_come_back_as_they_were_sent() -> None:
    change = Factors(b=np.float64([[1], [2]]), a=np.float64([[3, 4]]))
    merged = merge_tensors({"x": change, "y": Factors(b=np.zeros((2, 0)), a=np.zeros((0, 2)))})
    assert sorted(merged) == ["merge.x.lora_A.weight", "merge.x.lora_B.weight"]
    assert all(value.dtype == np.float32 for value in merged.values())
    (pair,) = lora_pairs([A, B])
    (again,) = merged_change(merged, pair)
    assert (again.b.tolist(), again.a.tolist()) == (change.b.tolist(), change.a.tolist())
    assert merged_change({}, pair) == []


def test_what_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(WireError, match="change of x does not fit float32"):
        to_float32(np.float64([1e39]), "x")


def test_a_client_of_the_global_rank_gets_the_tensors_themselves() -> None:
    """So that one encoding serves the whole cohort; a larger rank than the global one is refused."""
    held = tensors(np.eye(2), np.eye(2))
    client = ClientInfo(client_id=0, node_id=0, num_examples=1, rank=2, scaling=3.0)
    assert for_client(held, client, 3.0) is held
    assert np.allclose(for_client(held, client, 6.0)[B], 2 * np.eye(2))
    assert for_client(held, ClientInfo(client_id=0, node_id=0, num_examples=1), 1.0) is held
    with pytest.raises(FactorError, match=r"must be in 0\.\.2, got 3"):
        for_client(held, ClientInfo(client_id=0, node_id=0, num_examples=1, rank=3, scaling=2.0), 3.0)
