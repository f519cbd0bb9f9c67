"""Tables without classes: conversations and plain texts from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.data.holdout import hold_out
from fedpeft.data.partition import split_clients
from fedpeft.data.sources import load_conversations
from fedpeft.data.table import Table

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_conversations_and_plain_texts_are_told_apart_by_the_column(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "train.jsonl", [{"messages": SAID, "text": "a", "who": "x", "n": 1}])
    chat = load_conversations(path, text_column="messages", group_column="who", extra_columns=["n"])
    assert chat.texts == [(("user", "hi"), ("assistant", ""))] and chat.columns["n"].tolist() == [1]
    assert chat.label_names == () and chat.labels.tolist() == [0] and chat.group_names == ("x",)
    plain = load_conversations(path, text_column="text")
    assert plain.texts == [("a",)] and plain.group_names == ("all",)


def test_groups_of_a_later_split_follow_the_first(tmp_path: Path) -> None:
    first = _jsonl(tmp_path / "train.jsonl", [{"text": "a", "who": "y"}, {"text": "b", "who": "z"}])
    _jsonl(tmp_path / "test.jsonl", [{"text": "c", "who": "z"}, {"text": "d", "who": "a"}])
    table = load_conversations(first, text_column="text", group_column="who")
    later = load_conversations(str(tmp_path), split="test", text_column="text", group_column="who", like=table)
    assert later.group_names == ("y", "z", "a") and later.groups.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"messages": SAID}, {"messages": []}], "1 of 2 rows have no messages"),
        ([{"messages": SAID}, {"messages": None}], "1 of 2 rows have no messages"),
        ([{"messages": [{"role": "user", "content": None}]}, {"messages": SAID}], "1 of 2 rows .*without a role"),
        ([{"messages": [{"from": "user", "value": "hi"}]}], "text column 'messages' holds list"),
        ([{"text": "a"}], "no column 'messages'"),
    ],
)
def test_rows_without_words_are_counted(tmp_path: Path, rows: list[dict[str, Any]], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_conversations(_jsonl(tmp_path / "train.jsonl", rows), text_column="messages")


def _owned(*sizes: int) -> Table:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return Table(
        texts=[("x",)] * len(groups), labels=np.zeros_like(groups), label_names=(), groups=groups,
        group_names=tuple("abcdef"[: len(sizes)]),
    )  # fmt: skip


def test_the_largest_natural_groups_are_the_clients() -> None:
    """Groups a..e of 2, 7, 1, 7, 4: of three clients b and d come first (equal, in order), then e; 3 rows stay."""
    from flwr_datasets.partitioner import NaturalIdPartitioner

    table = _owned(2, 7, 1, 7, 4)
    partition = split_clients(table, NaturalIdPartitioner(partition_by="group"), 3)
    assert [partition.counts(table, client)["groups"] for client in range(3)] == [{"b": 7}, {"d": 7}, {"e": 4}]
    assert partition.sizes().tolist() == [7, 7, 4] and partition.num_unassigned == 3 and partition.num_parts == 5
    with pytest.raises(ConfigError, match=r"client_id must be in 0\.\.2"):
        partition.indices(3)


def test_held_out_texts_are_shared_out_by_group() -> None:
    """A quarter of 8 and 4 is 2 and 1."""
    table = _owned(8, 4)
    _, held = hold_out(table, 3, seed=0)
    assert np.bincount(table.groups[held]).tolist() == [2, 1]


def test_a_table_without_classes_has_no_class_but_0() -> None:
    with pytest.raises(DataError, match=r"label ids must be in 0\.\.0"):
        Table(texts=[("x",)], labels=np.array([1]), label_names=(), groups=np.array([0]), group_names=("a",))
