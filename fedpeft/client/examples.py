"""The data of a run: loaded, held out, split among the clients, tokenised."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.own import DEPLOYED, HeldElsewhere, OneHolder, OwnData
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.data.holdout import hold_out
from fedpeft.data.partition import Partition, split_clients
from fedpeft.data.sources import load_conversations, load_table
from fedpeft.data.table import Table
from fedpeft.tasks.base import Task
from fedpeft.tasks.batches import evaluation_batches, shards
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.models import load_tokenizer
from fedpeft.tasks.text_classification import TextClassification


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The data: what the server evaluates on and what the clients hold.

    Attributes:
        task: all training texts, tokenised.
        rows: (n,) row of ``task`` of each example that clients may hold.
        partition: splits ``0 .. n - 1`` among the clients.
        eval_task: the server's held-out texts, tokenised.
        eval_rows: rows of ``eval_task`` to evaluate on.
        search_rows: other rows of it, for strategies that search on the server's data (``strategy.search_examples``).
        label_names: names of the labels, () for texts without.
        group_names: names of the groups.
    """

    task: Task
    rows: np.ndarray
    partition: Partition | OneHolder | HeldElsewhere
    eval_task: Task
    eval_rows: np.ndarray
    search_rows: np.ndarray
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]

    @cached_property
    def mean_length(self) -> int:
        """Tokens of a text of the clients, in the mean, at least 1."""
        return max(1, round(float(self.task.lengths(self.rows).mean())))

    def eval_parts(self, rows: np.ndarray, settings: cfg.Config) -> list[list[np.ndarray]]:
        """Return rows of ``eval_task`` as batches, cut into parts that depend on the config alone.

        Args:
            rows: some of ``eval_rows`` or ``search_rows``; none give no parts.
            settings: ``evaluate`` of the config: examples a batch, and how many parts.
        """
        batches = evaluation_batches(rows, self.eval_task.lengths(rows), settings["batch_size"])
        return shards(batches, settings["shards"]) if len(rows) else []


def load_examples(config: cfg.Config, model_path: str, allow: Sequence[str] | None = None) -> Examples:
    """Load, hold out, split and tokenise the data; where clients are real devices, nothing is split."""
    task, seed = config["task"], config["seed"]
    table = _load(task, task["split"])
    tokenizer = load_tokenizer(model_path, config["model"]["revision"])
    encoded, usable = _encode(task, table, tokenizer, config["model"]["max_length"])
    held_out = task["held_out"]
    if isinstance(held_out, str):
        eval_table = _load(task, held_out, like=table)
        eval_task, eval_rows = _encode(task, eval_table, tokenizer, config["model"]["max_length"])
        rows = usable
    else:
        eval_table = table
        train, held = hold_out(_part(table, usable), held_out, seed)
        eval_task, rows, eval_rows = encoded, usable[train], usable[held]
    eval_rows, search_rows = _set_aside(eval_table, eval_rows, config["strategy"].get("search_examples", 0), seed)
    partition: Partition | HeldElsewhere = (
        HeldElsewhere(num_clients=config["num_clients"])
        if DEPLOYED in config
        else split_clients(_part(table, rows), cfg.build(config["partition"], allow), config["num_clients"], seed=seed)
    )
    return Examples(
        task=encoded,
        rows=rows,
        partition=partition,
        eval_task=eval_task,
        eval_rows=eval_rows,
        search_rows=search_rows,
        label_names=table.label_names,
        group_names=table.group_names,
    )


def load_own_examples(config: cfg.Config, own: OwnData, model_path: str) -> Examples:
    """Load and tokenise the one file of a real device; everything in it is this client's.

    Args:
        config: with this device's paths, see ``OwnData.applied``.
        own: the device.
        model_path: where its base model is, for the tokenizer.

    Raises:
        DataError: the file lacks a column or a text, or holds a label or group that the server does not know.
    """
    task, names = config["task"], {what: tuple(config[DEPLOYED][what]) for what in ("labels", "groups")}
    none = np.zeros(0, dtype=np.int64)
    known = Table(texts=[], labels=none, label_names=names["labels"], groups=none, group_names=names["groups"])
    table = _load(task, "train", like=known)
    if strange := sorted(set(table.group_names) - set(names["groups"])):
        raise DataError(
            f"{own.path}: {task['group_column']!r} has groups {strange[:5]} that the server does not know: it has "
            f"{list(names['groups'])[:8]} (rename them, or let the server set task.group_column=null)"
        )
    tokenizer = load_tokenizer(model_path, config["model"]["revision"])
    encoded, usable = _encode(task, table, tokenizer, config["model"]["max_length"])
    holder = OneHolder(client_id=own.client_id, num_rows=len(usable), num_clients=config["num_clients"])
    return Examples(
        task=encoded,
        rows=usable,
        partition=holder,
        eval_task=encoded,
        eval_rows=none,
        search_rows=none,
        label_names=table.label_names,
        group_names=table.group_names,
    )


def names_in(config: cfg.Config) -> dict[str, list[str]]:
    """Return the names of labels and groups in the run's own data, for devices that may have only some of them."""
    table = _load(config["task"], config["task"]["split"])
    return {"labels": list(table.label_names), "groups": list(table.group_names)}


def say(text: str) -> None:
    """Tell of long preparations; the display is not there yet."""
    print(text, file=sys.stderr, flush=True)


def _load(task: cfg.Config, split: str, like: Table | None = None) -> Table:
    """Load one split.

    Raises:
        DataError: a classification of one class.
    """
    common: dict[str, Any] = {name: task[name] for name in ("revision", "group_column", "extra_columns")}
    common |= {"split": split, "like": like, "progress": say}
    if task["kind"] == "causal_lm":
        return load_conversations(task["path"], text_column=task["text_column"], **common)
    table = load_table(task["path"], text_columns=task["text_columns"], label_column=task["label_column"], **common)
    if len(table.label_names) < 2:
        raise DataError(
            f"{task['path']}: {task['label_column']!r} holds one class, {table.label_names[0]!r}: there is nothing to "
            "tell apart (set task.label_column)"
        )
    return table


def _encode(task: cfg.Config, table: Table, tokenizer: Any, max_length: int) -> tuple[Task, np.ndarray]:
    """Return the tokenised table and the rows that can be used: those with something to learn.

    Raises:
        DataError: there is no such row.
    """
    common = (table.groups, len(table.group_names), tokenizer, max_length)
    if task["kind"] != "causal_lm":
        texts: Any = table.texts
        return TextClassification.encode(texts, table.labels, *common), np.arange(len(table))
    encoded = CausalLM.encode(table.texts, *common, train_on=task["train_on"])
    usable = np.flatnonzero(encoded.num_learned > 0)
    if lost := len(table) - len(usable):
        what = f"{lost:,} of {len(table):,} texts hold nothing to learn within model.max_length={max_length} tokens"
        if not len(usable):
            raise DataError(f"{task['path']}: {what} (no turn of the assistant: raise it, or set task.train_on=all)")
        say(f"{what}; they are left out")
    return encoded, usable


def _set_aside(table: Table, rows: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the held-out rows to evaluate on and those to search on, stratified by group and label.

    Raises:
        ConfigError: nothing would be left to evaluate on.
    """
    if not count:
        return rows, rows[:0]
    if count >= len(rows):
        raise ConfigError(
            f"strategy.search_examples must be below the {len(rows)} held-out examples, got {count} (lower it, or "
            "raise task.held_out)"
        )
    rest, aside = hold_out(_part(table, rows), count, seed)
    return rows[rest], rows[aside]


def _part(table: Table, rows: np.ndarray) -> Table:
    return table if len(rows) == len(table) else table.take(rows)
