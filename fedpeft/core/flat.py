"""Clients' changes as vectors, one row for each client: what rules that compare whole updates work on.

The order of coordinates is canonical: tensors by name, each in C order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedpeft.core.tensors import canonical
from fedpeft.core.types import ClientUpdate, Tensors


def flatten(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return all values in one float64 vector.

    Example:
        >>> flatten({"b": np.float32([3]), "a": np.float32([[1, 2]])}).tolist()
        [1.0, 2.0, 3.0]
    """
    return np.concatenate([np.asarray(tensors[key], np.float64).ravel() for key in sorted(tensors)])


def unflatten(vector: np.ndarray, like: Mapping[str, np.ndarray]) -> Tensors:
    """Return a vector's values as float64 tensors of these names and shapes; the inverse of ``flatten``.

    Args:
        vector: as many values as ``like`` has.
        like: names and shapes.

    Example:
        >>> unflatten(np.array([1.0, 2.0, 3.0]), {"b": np.zeros(1), "a": np.zeros((1, 2))})["a"].tolist()
        [[1.0, 2.0]]
    """
    keys = sorted(like)
    ends = np.cumsum([like[key].size for key in keys])
    return {key: part.reshape(like[key].shape) for key, part in zip(keys, np.split(vector, ends[:-1]), strict=True)}


def changes_by_tensor(updates: Sequence[ClientUpdate]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each returned tensor's name, in sorted order, with the clients' changes of it from what they were sent.

    Args:
        updates: that returned the same tensors.

    Yields:
        The name and a (clients, values) float64 matrix. One tensor at a time, because all of them at once take eight
        bytes for each value of each client.
    """
    for key in sorted(updates[0].tensors):
        yield key, np.stack([(one.tensors[key].astype(np.float64) - one.sent[key]).ravel() for one in updates])


def flat_changes(updates: Sequence[ClientUpdate]) -> np.ndarray:
    """Return the clients' whole changes from what they were sent, (clients, values), float64."""
    return np.concatenate([change for _, change in changes_by_tensor(updates)], axis=1)


def moved(global_tensors: Tensors, changes: Mapping[str, np.ndarray]) -> Tensors:
    """Return x + change in the names, shapes and dtypes of x; tensors without a change are copied.

    Args:
        global_tensors: x.
        changes: float64 values by name, of any shape with as many values.
    """
    new = {key: value.copy() for key, value in global_tensors.items()}
    with np.errstate(over="ignore"):
        for key, change in changes.items():
            new[key] = (new[key] + change.reshape(new[key].shape)).astype(new[key].dtype)
    return canonical(new)
