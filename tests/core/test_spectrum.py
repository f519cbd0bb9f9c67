"""Quadrature integrates polynomials exactly, Lanczos finds eigenvalues, and the scan stops where it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.core.spectrum import (
    Product,
    density,
    lanczos,
    num_selected,
    quadrature,
    rank_layers,
    selected_share,
    share_above,
    similarity_score,
)


def symmetric(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return (basis * eigenvalues) @ basis.T


def times(matrix: np.ndarray) -> Product:
    return lambda vector: matrix @ vector


@pytest.mark.parametrize("c", [0.0, 0.6, -0.8])
def test_score_of_two_examples_by_hand(c: float) -> None:
    """G = [[1, c], [c, 1]] has l = 1 + c and 1 - c, whatever the lengths of the rows.

    log l1 + log l2 = log(1 - c^2) and 1/l1 + 1/l2 = 2 / (1 - c^2); at c = 0.6: log 0.64 + 3.125 = 2.6787. The 1e-5
    added to each l moves the sum by 1e-5 (1/l - 1/l^2) each, at most 2e-4 here.
    """
    rows = np.array([[3.0, 0.0], [5 * c, 5 * math.sqrt(1 - c * c)]])
    assert similarity_score(rows) == pytest.approx(math.log(1 - c * c) + 2 / (1 - c * c), abs=2.5e-4)
    exact = sum(math.log(one) + 1 / one for one in (1 + c + 1e-5, 1 - c + 1e-5))
    assert similarity_score(rows) == pytest.approx(exact, rel=1e-12)


def test_score_of_equal_examples_is_that_of_null_directions() -> None:
    """Three equal rows: l = 3, 0, 0, so log 3 + 1/3 + 2 (log 1e-5 + 1e5) up to the ridge on the 3."""
    score = similarity_score(np.tile([1.0, 2.0, -1.0], (3, 1)))
    assert score == pytest.approx(math.log(3) + 1 / 3 + 2 * (math.log(1e-5) + 1e5), rel=1e-6)


def test_score_knows_neither_order_nor_columns_of_zeros() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    wider = np.concatenate([rows[::-1], np.zeros((6, 4), np.float32)], axis=1)
    assert similarity_score(wider) == pytest.approx(similarity_score(rows), rel=1e-9)
    assert similarity_score(rows) > 6


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_score_refuses_rows_without_direction(bad: float) -> None:
    with pytest.raises(DataError, match="example 1 of the batch"):
        similarity_score(np.array([[1.0, 2.0], [bad, bad], [3.0, 4.0]]))


def test_layers_are_ranked_by_weighted_mean() -> None:
    """Weights 1 and 3: means (1 + 3*5)/4 = 4, (9 + 3*1)/4 = 3, (4 + 3*4)/4 = 4, 8: order 3, then 0 and 2 tied, 1."""
    scores = [np.array([1.0, 9.0, 4.0, 8.0]), np.array([5.0, 1.0, 4.0, 8.0])]
    assert rank_layers(scores, [1, 3]) == [3, 0, 2, 1]
    # Unweighted, layer 1 leads layers 0 and 2: (3, 5, 4, 8).
    assert rank_layers(scores, [1, 1]) == [3, 1, 2, 0]
    assert rank_layers([scores[0]], [7]) == [1, 3, 2, 0]


def test_ranking_refuses_what_does_not_compare() -> None:
    with pytest.raises(DataError, match="same layers"):
        rank_layers([np.ones(3), np.ones(2)], [1, 1])
    with pytest.raises(DataError, match="same layers"):
        rank_layers([], [])
    with pytest.raises(DataError, match="finite"):
        rank_layers([np.array([1.0, np.nan])], [1])


def test_every_share_of_n_layers_is_that_many() -> None:
    for layers in range(1, 60):
        assert [num_selected(k / layers, layers) for k in range(1, layers + 1)] == list(range(1, layers + 1))
    assert num_selected(1e-6, 24) == num_selected(0.0, 24) == 1
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="share"):
            num_selected(bad, 24)


def test_lanczos_by_hand() -> None:
    """A = [[2, 1], [1, 2]] from (1, 0): alpha 2, the rest (0, 1) of length 1, alpha 2.

    T = A: nodes 1 and 3, and (1, 0) is half of each eigenvector.
    """
    alphas, betas = lanczos(times(np.array([[2.0, 1.0], [1.0, 2.0]])), np.array([7.0, 0.0]), 2)
    assert (alphas.tolist(), betas.tolist()) == ([2.0, 2.0], [1.0])
    nodes, weights = quadrature(alphas, betas)
    np.testing.assert_allclose(nodes, [1, 3], rtol=1e-14)
    np.testing.assert_allclose(weights, [0.5, 0.5], rtol=1e-14)


def test_all_steps_give_all_eigenvalues() -> None:
    eigenvalues = np.array([-3.0, -1.0, 0.0, 0.5, 0.51, 2.0, 10.0, 1000.0])
    alphas, betas = lanczos(times(symmetric(eigenvalues)), np.random.default_rng(1).normal(size=8), 99)
    assert (len(alphas), len(betas)) == (8, 7)
    np.testing.assert_allclose(quadrature(alphas, betas)[0], eigenvalues, atol=1e-10)


def test_quadrature_is_exact_up_to_degree_2m_minus_1_and_no_further() -> None:
    matrix = symmetric(np.linspace(-1, 1, 30))
    start = np.random.default_rng(2).normal(size=30)
    unit = start / np.linalg.norm(start)
    for m in (1, 2, 5):
        nodes, weights = quadrature(*lanczos(times(matrix), start, m))
        for degree in range(2 * m):
            expected = unit @ np.linalg.matrix_power(matrix, degree) @ unit
            assert nodes**degree @ weights == pytest.approx(expected, abs=1e-13)
        beyond = unit @ np.linalg.matrix_power(matrix, 2 * m) @ unit
        assert abs(nodes ** (2 * m) @ weights - beyond) > 1e-5


def test_converged_eigenvalues_have_no_ghosts() -> None:
    """Outliers converge within a few steps; without orthogonalisation their copies would come back."""
    eigenvalues = np.concatenate([np.linspace(0, 1, 97), [50.0, 75.0, 100.0]])
    nodes, _ = quadrature(*lanczos(times(symmetric(eigenvalues)), np.random.default_rng(3).normal(size=100), 60))
    assert [int((np.abs(nodes - one) < 1e-6).sum()) for one in (50.0, 75.0, 100.0)] == [1, 1, 1]
    assert (nodes > 1.01).sum() == 3


def test_a_closed_space_ends_early() -> None:
    matrix = symmetric(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    _, vectors = np.linalg.eigh(matrix)
    alphas, betas = lanczos(times(matrix), vectors[:, 1] + 2 * vectors[:, 3], 5)
    nodes, weights = quadrature(alphas, betas)
    np.testing.assert_allclose(nodes, [2, 4], rtol=1e-12)
    np.testing.assert_allclose(weights, [1 / 5, 4 / 5], rtol=1e-12)
    nodes, weights = density(np.zeros_like, 6, num_steps=4, rng=np.random.default_rng(0))
    assert (nodes.tolist(), weights.tolist()) == ([0.0], [1.0])


def test_lanczos_refuses_what_it_cannot_start_from() -> None:
    with pytest.raises(ConfigError, match="num_steps"):
        lanczos(np.zeros_like, np.ones(3), 0)
    with pytest.raises(DataError, match="start"):
        lanczos(np.zeros_like, np.zeros(3), 1)
    with pytest.raises(DataError, match="product 1"):
        lanczos(lambda vector: vector * np.nan, np.ones(3), 2)


def test_one_vector_matches_a_diagonal_matrix() -> None:
    """Entries +-1 over sqrt(n): u' D^p u = sum d_i^p / n for every such u."""
    diagonal = np.array([-1.0, 0.0, 0.5, 2.0, 2.5, 3.0])
    nodes, weights = density(lambda vector: diagonal * vector, 6, num_steps=3, rng=np.random.default_rng(0))
    for degree in range(6):
        assert nodes**degree @ weights == pytest.approx(np.mean(diagonal**degree), rel=1e-12)


def test_many_vectors_come_near_the_trace() -> None:
    """u' A u over signs u / sqrt(n) has mean tr A / n, variance 2 / n^2 times the off-diagonal squares."""
    matrix = symmetric(np.linspace(0, 10, 20))
    nodes, weights = density(times(matrix), 20, num_steps=4, num_vectors=200, rng=np.random.default_rng(0))
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    assert (np.diff(nodes) >= 0).all() and len(nodes) == 800
    spread = math.sqrt(2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum()) / 20**2 / 200)
    assert abs(nodes @ weights - 5) < 4 * spread < 0.5


def test_density_depends_on_its_generator_alone() -> None:
    matrix = symmetric(np.linspace(0, 1, 12))
    first, again, other = (density(times(matrix), 12, num_steps=3, rng=np.random.default_rng(s)) for s in (0, 0, 1))
    assert first[0].tobytes() == again[0].tobytes() and first[1].tobytes() == again[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()


def test_density_names_all_wrong_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        density(np.zeros_like, 0, num_steps=0, num_vectors=0, rng=np.random.default_rng(0))
    assert [line.split()[0] for line in caught.value.problems] == ["num_steps", "num_vectors", "dim"]


def test_blurred_nodes_by_hand() -> None:
    """Half the mass at 0, half at 1, variance 0.01: above 0 lies half of the first; above 1.1, one sigma of the last.

    1 - Phi(1) = 0.1586553.
    """
    nodes, weights = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert share_above(0.0, nodes, weights, 0.01) == pytest.approx(0.75)
    assert share_above(1.1, nodes, weights, 0.01) == pytest.approx(0.5 * 0.1586553, abs=1e-7)
    assert share_above(-9.0, nodes, weights, 0.01) == 1.0


def test_scan_by_hand() -> None:
    """Four nodes of 1/4 at .05, .15, .35 and .62, no blur. t and rho:

    0: 1; .1: 3/4; .2: 1/2; .3: 1/2 (calm); .4: 1/4, half of before, so steps of .05 from here;
    .45, .5, .55 and .6: 1/4, calm four times. Steps of .1 would have passed .62 and given 0.
    """
    nodes, weights = np.array([0.05, 0.15, 0.35, 0.62]), np.full(4, 0.25)
    assert selected_share(nodes, weights, blur=0) == 0.25
    # One more calm change is at .65, past the last node; then 0 stays 0.
    assert selected_share(nodes, weights, blur=0, patience=5) == 0.0
    # From -.15 the first step ends at -.05, below every node: calm at once.
    assert selected_share(nodes, weights, blur=0, first=-0.15, patience=1) == 1.0
    # A tolerance of .3 calls falls of 1/4 calm.
    assert selected_share(nodes, weights, blur=0, tolerance=0.3, patience=2) == 0.5


def test_scan_blurs_by_the_range() -> None:
    """Half the mass at 0, half at 1: 3/4 lies above 0 when blurred, 1/2 when not; both settle at 1/2.

    With blur 1 the variance is 1 (the range): the scan first sees rho(0) = 1/4 + Phi(1) / 2 = 0.6707.
    """
    nodes, weights = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert selected_share(nodes, weights) == pytest.approx(0.5)
    assert selected_share(nodes, weights, blur=1, patience=1, step=1e-6) == pytest.approx(0.6707, abs=1e-4)


def test_a_flat_or_negative_spectrum_gives_nothing() -> None:
    for nodes in ([0.001], [-3.0, -1.0], [0.01, 0.02]):
        share = selected_share(np.array(nodes), np.full(len(nodes), 1 / len(nodes)))
        assert share == pytest.approx(0, abs=1e-12) and num_selected(share, 12) == 1


@pytest.mark.parametrize("seed", range(8))
def test_scan_ends_within_its_bound_and_is_a_share(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.random(50)
    nodes = rng.normal(size=50) * 10.0 ** rng.integers(-4, 3)
    assert 0 <= selected_share(nodes, weights / weights.sum()) <= np.sum(weights[nodes > -0.1]) / weights.sum()
    assert selected_share(nodes, weights / weights.sum(), first=1e6) == 0.0


def test_scan_names_all_wrong_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        selected_share(np.ones(1), np.ones(1), step=0, tolerance=0, patience=0, blur=-1)
    assert [line.split()[0] for line in caught.value.problems] == ["step", "tolerance", "patience", "blur"]
