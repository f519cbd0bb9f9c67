"""The data of a run: loaded, held out, split among the clients, tokenised."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.core.errors import DataError
from fedpeft.data.holdout import hold_out
from fedpeft.data.partition import Partition, split_clients
from fedpeft.data.sources import load_table
from fedpeft.data.table import Table
from fedpeft.tasks.models import load_tokenizer
from fedpeft.tasks.text_classification import TextClassification


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The data: what the server evaluates on and what the clients hold.

    Attributes:
        task: all training texts, tokenised.
        rows: (n,) row of ``task`` of each example that clients hold.
        partition: splits ``0 .. n - 1`` among the clients.
        eval_task: the server's held-out texts, tokenised.
        eval_rows: rows of ``eval_task`` to evaluate on.
        label_names: names of the labels.
        group_names: names of the groups.
    """

    task: TextClassification
    rows: np.ndarray
    partition: Partition
    eval_task: TextClassification
    eval_rows: np.ndarray
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]


def load_examples(config: cfg.Config, model_path: str, allow: Sequence[str] | None = None) -> Examples:
    """Load, hold out, split and tokenise the data."""
    task = config["task"]
    columns: dict[str, Any] = {
        name: task[name] for name in ("text_columns", "label_column", "group_column", "extra_columns")
    }
    columns["progress"] = say
    table = load_table(task["path"], split=task["split"], revision=task["revision"], **columns)
    if len(table.label_names) < 2:
        raise DataError(
            f"{task['path']}: {task['label_column']!r} holds one class, {table.label_names[0]!r}: there is nothing to "
            "tell apart (set task.label_column)"
        )
    held_out = task["held_out"]
    if isinstance(held_out, str):
        eval_table = load_table(task["path"], split=held_out, revision=task["revision"], like=table, **columns)
        rows, eval_rows = np.arange(len(table)), np.arange(len(eval_table))
    else:
        eval_table = table
        rows, eval_rows = hold_out(table, held_out, config["seed"])
    held = table if len(rows) == len(table) else table.take(rows)
    partition = split_clients(held, cfg.build(config["partition"], allow), config["num_clients"], seed=config["seed"])
    tokenizer = load_tokenizer(model_path, config["model"]["revision"])
    encoded = _encode(table, tokenizer, config["model"]["max_length"])
    return Examples(
        task=encoded,
        rows=rows,
        partition=partition,
        eval_task=encoded if eval_table is table else _encode(eval_table, tokenizer, config["model"]["max_length"]),
        eval_rows=eval_rows,
        label_names=table.label_names,
        group_names=table.group_names,
    )


def say(text: str) -> None:
    """Tell of long preparations; the display is not there yet."""
    print(text, file=sys.stderr, flush=True)


def _encode(table: Table, tokenizer: Any, max_length: int) -> TextClassification:
    return TextClassification.encode(
        table.texts, table.labels, table.groups, len(table.group_names), tokenizer, max_length
    )
