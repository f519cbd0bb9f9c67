"""The table's own laws."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.table import Table, count_by_name


def _table(labels: list[int], **changes: object) -> Table:
    parts = {
        "texts": [(str(i),) for i in range(len(labels))],
        "labels": np.array(labels, dtype=np.int64),
        "label_names": ("no", "yes"),
        "groups": np.zeros(len(labels), dtype=np.int64),
        "group_names": ("all",),
        "columns": {"user": np.array([f"u{i}" for i in range(len(labels))])},
    }
    return Table(**{**parts, **changes})


def test_take_keeps_rows_together_and_the_table_as_it_was() -> None:
    table = _table([0, 1, 1])
    part = table.take([2, 0])
    assert part.texts == [("2",), ("0",)] and part.labels.tolist() == [1, 0]
    assert part.columns["user"].tolist() == ["u2", "u0"] and part.label_names == ("no", "yes")
    assert table.labels.tolist() == [0, 1, 1] and len(part) == 2


@pytest.mark.parametrize("changes", [{"texts": [("a",)]}, {"columns": {"user": np.array(["a"])}}])
def test_unequal_lengths_are_refused(changes: dict) -> None:
    with pytest.raises(DataError, match="equally long"):
        _table([0, 1], **changes)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_ids_without_a_name_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"label ids must be in 0\.\.1"):
        _table(labels)


def test_counts_leave_out_zeros() -> None:
    assert count_by_name(np.array([2, 0, 2]), ("a", "b", "c")) == {"a": 1, "c": 2}
