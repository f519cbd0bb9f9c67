"""One string says where a model or a table comes from.

Three kinds:

    package:NAME      an entry of `fedpeft.data.catalogue`, fetched on first use
    a path            a local folder or file: whatever begins with / . or ~, or exists
    owner/name        the Hugging Face hub; datasets also as owner/name:config
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedpeft.core.errors import DataError
from fedpeft.core.paths import cache_dir
from fedpeft.data.catalogue import find
from fedpeft.data.encode import conversations_of, groups_of, is_conversation, labels_of, texts_of
from fedpeft.data.fetch import fetch, is_complete
from fedpeft.data.readers import read_hub, read_local
from fedpeft.data.table import Conversation, Table, Text

if TYPE_CHECKING:
    import pyarrow as pa

_PACKAGE = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
ONE_GROUP = "all"
"""Name of the only group of a table without a group column."""

Progress = Callable[[str], None]


def resolve_model(path: str, revision: str | None = None, *, progress: Progress | None = None) -> str:
    """Return what ``from_pretrained`` takes: a local folder, or the hub id as it is.

    Args:
        path: ``package:NAME``, a local folder, or a hub id.
        revision: branch, tag or commit; pass it on to ``from_pretrained``. Only the hub has revisions.
        progress: told what goes on while a package is fetched.

    Raises:
        DataError: no such folder, no ``config.json`` in it, a package that holds no model, or a revision of something
            that has none.
    """
    local = _local(path, revision, "model", progress)
    if local is None:
        return path
    if not (local / "config.json").is_file():
        raise DataError(f"{path} is no model folder: expected a folder with config.json in it")
    return str(local)


def is_here(path: str, revision: str | None = None) -> bool:
    """Return whether a model can be loaded without a connection.

    Args:
        path: ``package:NAME``, a local folder, or a hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        DataError: ``path`` names nothing that there could be.
    """
    if path.startswith(_PACKAGE):
        return is_complete(find(path.removeprefix(_PACKAGE)), cache_dir())
    if _local(path, None, "model", None) is not None:
        return True
    from transformers.utils.hub import cached_file

    try:
        return cached_file(path, "config.json", revision=revision, local_files_only=True) is not None
    except OSError:
        return False


def load_table(
    path: str,
    *,
    split: str = "train",
    text_columns: Sequence[str],
    label_column: str,
    group_column: str | None = None,
    extra_columns: Sequence[str] = (),
    revision: str | None = None,
    like: Table | None = None,
    progress: Progress | None = None,
) -> Table:
    """Return one split of a labelled data set as a `Table`; rows keep their order.

    Every row must be whole. Hugging Face data marks a withheld label with -1 (the test sets of GLUE); a split with such
    rows is refused and they are counted, as are rows with a null text or label: training on them would be nonsense.

    Args:
        path: ``package:NAME``, a local folder or file of parquet, csv or jsonl, or a hub id.
        split: ``train``, ``validation`` or ``test``; how files are found for it says `fedpeft.data.readers.read_local`.
        text_columns: one column, or two for pairs of texts.
        label_column: classes; names of a ClassLabel are kept, other values are numbered in sorted order.
        group_column: natural groups (domain, speaker ...); without it all rows are of the group ``all``.
        extra_columns: further columns to keep for partitioners that split by them.
        revision: branch, tag or commit on the hub.
        like: an earlier split: class and group ids follow its names. Give it for every split but the first, because a
            class that a small split lacks would shift the ids.
        progress: told what goes on while a package is fetched.

    Raises:
        DataError: source, split or column missing, unreadable files, unlabelled rows, or classes that ``like`` lacks.

    Example:
        >>> table = load_table(                                # doctest: +SKIP
        ...     "package:sentiment", text_columns=["text"], label_column="label", group_column="group"
        ... )
    """
    if not 1 <= len(text_columns) <= 2 or isinstance(text_columns, str):
        raise DataError(f"text_columns must be a list of one or two columns, got {text_columns!r}")
    grouping = [group_column] if group_column else []
    columns = list(dict.fromkeys([*text_columns, label_column, *grouping, *extra_columns]))
    local = _local(path, revision, "table", progress)
    if local is None:
        table = read_hub(path, split=split, columns=columns, revision=revision)
    else:
        table = read_local(local, split=split, columns=columns, text_columns=text_columns)
    source = f"{path} ({split})"
    texts = texts_of(table, tuple(text_columns), source)
    labels, label_names = labels_of(table, label_column, source, known=like.label_names if like is not None else None)
    groups, group_names = _groups(table, group_column, source, like)
    return Table(
        texts=texts,
        labels=labels,
        label_names=label_names,
        groups=groups,
        group_names=group_names,
        columns={name: np.asarray(table.column(name).to_pylist()) for name in extra_columns},
    )


def load_conversations(
    path: str,
    *,
    split: str = "train",
    text_column: str,
    group_column: str | None = None,
    extra_columns: Sequence[str] = (),
    revision: str | None = None,
    like: Table | None = None,
    progress: Progress | None = None,
) -> Table:
    """Return one split of a data set without classes as a `Table`; rows keep their order.

    Args:
        path: ``package:NAME``, a local folder or file of parquet, csv or jsonl, or a hub id.
        split: ``train``, ``validation`` or ``test``; see `load_table`.
        text_column: a column of conversations (lists of {role, content}), or of plain texts.
        group_column: natural groups (speaker, domain ...); without it all rows are of the group ``all``.
        extra_columns: further columns to keep for partitioners that split by them.
        revision: branch, tag or commit on the hub.
        like: an earlier split: group ids follow its names.
        progress: told what goes on while a package is fetched.

    Raises:
        DataError: source, split or column missing, unreadable files, or rows without text.
    """
    columns = list(dict.fromkeys([text_column, *([group_column] if group_column else []), *extra_columns]))
    local = _local(path, revision, "table", progress)
    if local is None:
        table = read_hub(path, split=split, columns=columns, revision=revision)
    else:
        table = read_local(local, split=split, columns=columns, text_columns=[text_column])
    source = f"{path} ({split})"
    kind = table.schema.field(text_column).type
    texts: Sequence[Text | Conversation] = (
        conversations_of(table, text_column, source)
        if is_conversation(kind)
        else texts_of(table, (text_column,), source)
    )
    groups, group_names = _groups(table, group_column, source, like)
    return Table(
        texts=texts,
        labels=np.zeros(table.num_rows, dtype=np.int64),
        label_names=(),
        groups=groups,
        group_names=group_names,
        columns={name: np.asarray(table.column(name).to_pylist()) for name in extra_columns},
    )


def _groups(table: pa.Table, column: str | None, source: str, like: Table | None) -> tuple[np.ndarray, tuple[str, ...]]:
    if column is None:
        return np.zeros(table.num_rows, dtype=np.int64), (ONE_GROUP,)
    return groups_of(table, column, source, known=like.group_names if like is not None else ())


def _local(
    path: str, revision: str | None, wanted: Literal["model", "table"], progress: Progress | None
) -> Path | None:
    """Return the local folder or file that ``path`` means, None where it means the hub."""
    if path.startswith(_PACKAGE):
        found = _from_package(path.removeprefix(_PACKAGE), wanted, progress)
    elif path.startswith(("/", ".", "~")) or (path and Path(path).exists()):
        found = Path(path).expanduser()
        if not found.exists():
            raise DataError(f"no file or folder {path!r} (looked from {Path.cwd()})")
    elif _HUB_ID.fullmatch(path):
        return None
    else:
        raise DataError(f"{path!r} is neither package:NAME, nor an existing path, nor a Hugging Face id (owner/name)")
    if revision is not None:
        raise DataError(f"revision {revision!r} was given for {path!r}, but only Hugging Face ids have revisions")
    return found


def _from_package(name: str, wanted: Literal["model", "table"], progress: Progress | None) -> Path:
    package = find(name)
    if package.holds != wanted:
        raise DataError(f"package:{name} holds a {package.holds}, a {wanted} was asked for")
    return fetch(package, progress=progress)
