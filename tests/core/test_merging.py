"""TIES keeps what is large and agreed on, and gives clients that agree back."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.merging import task_arithmetic, ties, trim


def changes(count: int = 5, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(6, 7)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.55, 1.0])
def test_trim_keeps_so_many_of_the_largest(density: float) -> None:
    (x,) = changes(1)
    kept = trim(x, density)
    assert kept.dtype == x.dtype and kept.shape == x.shape
    assert np.count_nonzero(kept) == int(np.ceil(density * 42))
    assert (kept[kept != 0] == x[kept != 0]).all()
    assert np.abs(x[kept != 0]).min() >= np.abs(np.where(kept == 0, x, 0)).max()


def test_trim_of_equal_magnitudes_keeps_the_first() -> None:
    x = np.array([[1.0, -2.0], [2.0, -2.0]])
    assert trim(x, 0.5).tolist() == [[0, -2], [2, 0]]
    assert trim(np.zeros(4), 0.5).tolist() == [0, 0, 0, 0]
    assert trim(np.full(50, 3.0), 0.14).sum() == 21
    trimmed = trim(x, 1.0)
    trimmed[:] = 0
    assert x[0, 1] == -2


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_densities_that_keep_nothing_or_too_much_are_refused(density: float) -> None:
    with pytest.raises(ConfigError, match="density"):
        trim(np.ones(3), density)
    with pytest.raises(ConfigError, match="density"):
        ties([np.ones(3)], [1], density)


def test_ties_of_three_clients_by_hand() -> None:
    """Weights 1, 2, 1; density 0.5 keeps two of four entries.

        trimmed:  (4, 0, 2, 0)   (-3, 3, 0, 0)   (5, -5, 0, 0)
        weighted sums: 4 - 6 + 5 = 3;  0 + 6 - 5 = 1;  2;  0, so the signs are +, +, +, none
        means of those that agree: (1*4 + 1*5) / 2 = 4.5;  2*3 / 2 = 3;  2;  0

    Unweighted, entry 1 has sum 3 - 5 = -2: the weights elect its sign.
    """
    clients = [np.array([4.0, -1.0, 2.0, 0.5]), np.array([-3.0, 3.0, 1.0, -0.5]), np.array([5.0, -5.0, -1.5, 0.25])]
    assert ties(clients, [1, 2, 1], density=0.5).tolist() == [4.5, 3.0, 2.0, 0.0]
    assert ties(clients, [1, 1, 1], density=0.5).tolist() == [4.5, -5.0, 2.0, 0.0]
    assert ties(clients, [1, 2, 1], density=0.5, scale=2.0).tolist() == [9.0, 6.0, 4.0, 0.0]
    # Weights enter the mean too: (1*4 + 3*5) / 4 = 4.75; entry 1: 2*3 - 3*5 < 0, so -5.
    assert ties(clients, [1, 2, 3], density=0.5).tolist() == [4.75, -5.0, 2.0, 0.0]


def test_a_tied_election_merges_to_nothing() -> None:
    assert ties([np.array([2.0, 1.0]), np.array([-2.0, 3.0])], [1, 1], density=1.0).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("weights", [[1], [7, 7], [3, 10**7, 1], [1 / 3, 0.1, 7, 11, 13, 17]])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_clients_that_agree_are_given_back_bit_for_bit(weights: list[float], density: float) -> None:
    """However many there are: an unweighted mean of w_k x_k would be K times too small."""
    (x,) = changes(1)
    merged = ties([x] * len(weights), weights, density)
    assert merged.dtype == np.float64
    assert (merged == trim(x, density)).all()
    assert (task_arithmetic([x] * len(weights), weights) == x).all()


def test_ties_lies_between_the_clients_that_agree() -> None:
    clients, weights = changes(), [1, 2, 3, 4, 5]
    merged = ties(clients, weights, density=0.6)
    trimmed = np.stack([trim(one, 0.6) for one in clients])
    agree = (np.sign(trimmed) == np.sign(merged)) & (merged != 0)
    assert (np.sign(merged) == np.sign(np.tensordot(weights, trimmed.astype(np.float64), 1))).all()
    sizes = np.abs(trimmed)
    assert (np.abs(merged) <= np.where(agree, sizes, 0).max(0) + 1e-12).all()
    assert (np.abs(merged) >= np.where(agree, sizes, np.inf).min(0) - 1e-12)[merged != 0].all()


@pytest.mark.parametrize("merge", [task_arithmetic, lambda x, w: ties(x, w, 0.5)])
def test_only_ratios_of_weights_count_and_inputs_stay(merge: object) -> None:
    assert callable(merge)
    clients = changes()
    before = [one.copy() for one in clients]
    np.testing.assert_allclose(merge(clients, [1, 2, 3, 4, 5]), merge(clients, [10, 20, 30, 40, 50]), rtol=1e-12)
    order = [3, 1, 4, 0, 2]
    shuffled = merge([clients[i] for i in order], [order_weight + 1 for order_weight in order])
    np.testing.assert_allclose(merge(clients, [1, 2, 3, 4, 5]), shuffled, rtol=1e-9, atol=1e-12)
    assert all((a == b).all() for a, b in zip(before, clients, strict=True))


def test_task_arithmetic_by_hand() -> None:
    """(1*1 + 3*5) / 4 = 4 and (1*4 + 0) / 4 = 1, times 0.5. Equal weights at scale K lambda: lambda times the sum."""
    clients = [np.array([1.0, 4.0]), np.array([5.0, 0.0])]
    assert task_arithmetic(clients, [1, 3], scale=0.5).tolist() == [2.0, 0.5]
    assert task_arithmetic(clients, [1, 1], scale=2 * 0.3).tolist() == pytest.approx([0.3 * 6, 0.3 * 4])


def test_what_does_not_fit_together_is_refused() -> None:
    x = np.ones(3)
    for clients, weights, match in [
        ([x, np.ones(2)], [1, 1], "one shape"),
        ([], [], "one shape"),
        ([x, x], [1], "weights"),
        ([x], [0], "weights"),
        ([x], [float("nan")], "weights"),
    ]:
        with pytest.raises(ConfigError, match=match):
            ties(clients, weights, 0.5)
        with pytest.raises(ConfigError, match=match):
            task_arithmetic(clients, weights)
