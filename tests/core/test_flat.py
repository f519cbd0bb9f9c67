"""Changes as vectors: order, shapes, and back."""

from __future__ import annotations

import numpy as np

from fedpeft.core.flat import changes_by_tensor, flat_changes, flatten, moved, unflatten
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors


def tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes = {"b": (2, 3), "a": (4,), "c": ()}
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def updates() -> list[ClientUpdate]:
    return [
        ClientUpdate(
            client=ClientInfo(client_id=k, node_id=k, num_examples=1),
            tensors=tensors(k),
            num_examples=1,
            sent={**tensors(9), "control.a": np.ones(4, np.float32)},
        )
        for k in range(3)
    ]


def test_vectors_hold_tensors_by_name_and_go_back() -> None:
    one = tensors(0)
    vector = flatten(one)
    assert vector.dtype == np.float64
    assert vector.tolist() == [*one["a"].tolist(), *one["b"].ravel().tolist(), float(one["c"])]
    back = unflatten(vector, one)
    assert list(back) == ["a", "b", "c"]
    assert all(np.array_equal(back[key], one[key]) for key in one)


def test_rows_are_changes_from_what_was_sent() -> None:
    """Also where other keys were sent, which do not come back."""
    rows = flat_changes(updates())
    expected = [flatten(tensors(k)) - flatten(tensors(9)) for k in range(3)]
    assert np.array_equal(rows, expected)
    assert np.array_equal(rows, np.concatenate([part for _, part in changes_by_tensor(updates())], axis=1))
    assert [key for key, _ in changes_by_tensor(updates())] == ["a", "b", "c"]


def test_moving_keeps_shapes_dtypes_and_what_has_no_change() -> None:
    start = tensors(1)
    new = moved(start, {"b": np.arange(6.0)})
    assert new["b"].dtype == np.float32
    assert np.array_equal(new["b"], (start["b"] + np.arange(6.0).reshape(2, 3)).astype(np.float32))
    assert np.array_equal(new["a"], start["a"])
    assert not any(np.shares_memory(new[key], start[key]) for key in start)
