"""Sums over clients are exact where they can be, and ordered where they cannot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedpeft.core.tensors import all_finite, canonical, norm, specs, subtract, weighted_mean
from fedpeft.core.types import Tensors, TensorSpec

ODD = np.array([-0.0, 0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1 / 3, 0.1], np.float32)


def random_tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(5, 7)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float16),
        "c": rng.normal(size=()),
    }


def identical(a: Tensors, b: Tensors) -> bool:
    return list(a) == list(b) and all(
        a[k].tobytes() == b[k].tobytes() and a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a
    )


@pytest.mark.parametrize("weight", [1, 7, 10**7, 1e-300, 1 / 3])
def test_one_client_is_returned_bit_for_bit(weight: float) -> None:
    for tensors in (random_tensors(0), {"x": ODD}):
        assert identical(weighted_mean([tensors], [weight]), tensors)


@pytest.mark.parametrize("weights", [[1, 1], [1, 2, 4], [3, 10**7, 1], [1 / 3, 0.1, 7, 11, 13, 17]])
def test_equal_clients_are_a_fixed_point_bit_for_bit(weights: list[float]) -> None:
    for tensors in (random_tensors(1), {"x": ODD}):
        assert identical(weighted_mean([tensors] * len(weights), weights), tensors)


def test_mean_by_hand() -> None:
    """Weights 1, 2, 5 of 8. x: (8 + 2*0 + 5*4) / 8 = 3.5, (-8 + 2*4 + 5*8) / 8 = 5. y: (1 + 2*1 + 5*9) / 8 = 6."""
    clients = [
        {"x": np.float32([8, -8]), "y": np.float64(1)[None]},
        {"x": np.float32([0, 4]), "y": np.float64(1)[None]},
        {"x": np.float32([4, 8]), "y": np.float64(9)[None]},
    ]
    mean = weighted_mean(clients, [1, 2, 5])
    assert mean["x"].tolist() == [3.5, 5.0]
    assert mean["y"].tolist() == [6.0]
    assert mean["x"].dtype == np.float32


def test_mean_is_summed_in_float64() -> None:
    """(2^24 + 3 * (2^24 + 2)) / 4 = 2^24 + 1.5, which float32 rounds to 2^24 + 2; small values survive large ones."""
    big = np.float32([2**24])
    mean = weighted_mean([{"x": big}, {"x": big + np.float32(2)}], [1, 3])
    assert mean["x"][0] == 2**24 + 2
    many = [{"x": np.float32([0.1])} for _ in range(500)] + [{"x": np.float32([1e8])}] + [{"x": np.float32([-1e8])}]
    assert weighted_mean(many, [1] * 502)["x"][0] == pytest.approx(500 * float(np.float32(0.1)) / 502, rel=1e-6)


def test_weights_count_only_by_their_ratios() -> None:
    clients = [random_tensors(i) for i in range(3)]
    assert identical(weighted_mean(clients, [1, 2, 4]), weighted_mean(clients, [2**20, 2**21, 2**22]))


def test_order_of_clients_moves_the_last_bit_at_most() -> None:
    clients = [random_tensors(i) for i in range(4)]
    means = [
        weighted_mean([clients[i] for i in p], [[5, 7, 11, 13][i] for i in p])["a"]
        for p in itertools.permutations(range(4))
    ]
    for mean in means:
        np.testing.assert_allclose(mean, means[0], rtol=1e-6, atol=1e-7)


def test_nothing_is_mutated() -> None:
    clients = [random_tensors(i) for i in range(3)]
    before = [{k: v.copy() for k, v in c.items()} for c in clients]
    weighted_mean(clients, [1, 2, 3])
    subtract(clients[0], clients[1])
    canonical(clients[0])["a"]
    assert all(identical(a, b) for a, b in zip(clients, before, strict=True))


def test_keys_differing_between_clients_are_an_error() -> None:
    with pytest.raises(KeyError):
        weighted_mean([{"x": np.zeros(1)}, {"y": np.zeros(1)}], [1, 1])
    with pytest.raises(ValueError, match="zip"):
        weighted_mean([{"x": np.zeros(1)}], [1, 1])


def test_canonical_sorts_keys_and_keeps_shapes_and_values() -> None:
    tensors = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.float32(3.5)[()], "A": np.zeros((0, 2))}
    ordered = canonical({k: np.asarray(v) for k, v in tensors.items()})
    assert list(ordered) == ["A", "a", "b"]
    assert [v.shape for v in ordered.values()] == [(0, 2), (), (3, 2)]
    assert ordered["b"].flags.c_contiguous
    assert np.array_equal(ordered["b"], tensors["b"])


def test_specs_say_shape_dtype_and_bytes() -> None:
    spec = specs({"y": np.zeros((2, 3), np.float16), "x": np.zeros((), np.float64)})
    assert spec == {"x": TensorSpec((), "float64"), "y": TensorSpec((2, 3), "float16")}
    assert list(spec) == ["x", "y"]
    assert [s.num_bytes for s in spec.values()] == [8, 12]
    assert TensorSpec((2**20, 2**20, 2**10), "float32").num_bytes == 2**52


def test_norm_and_difference_by_hand() -> None:
    """Differences (3, 0) and (4): norm 5. Squares of float32 values near its limit stay finite in float64."""
    a = {"x": np.float32([5, 1]), "y": np.float32([[6]])}
    b = {"x": np.float32([2, 1]), "y": np.float32([[2]])}
    assert norm(subtract(a, b)) == 5.0
    assert subtract(a, b)["x"].dtype == np.float64
    assert norm({"x": np.float32([3e38, 3e38])}) == pytest.approx(2**0.5 * float(np.float32(3e38)))
    assert norm({}) == 0.0


@pytest.mark.parametrize(("value", "finite"), [(1e38, True), (np.nan, False), (np.inf, False), (-np.inf, False)])
def test_all_finite_looks_at_every_value(value: float, finite: bool) -> None:
    assert all_finite({"a": np.zeros(3), "b": np.float32([0, value])}) is finite
    assert all_finite({})
