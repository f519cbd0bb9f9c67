"""Turn columns into texts and conversations, and columns of classes or groups into ids and names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.core.errors import DataError
from fedpeft.data.table import Conversation

if TYPE_CHECKING:
    import pyarrow as pa

UNLABELLED = -1
"""What Hugging Face datasets store where the label is withheld, e.g. in the test sets of GLUE."""


def texts_of(table: pa.Table, columns: tuple[str, ...], source: str) -> list[tuple[str, ...]]:
    """Return one tuple of texts for each row; empty texts are texts.

    Raises:
        DataError: a column that holds no text, or rows without one; counts them.
    """
    lists = []
    for name in columns:
        column = _plain(table.column(name))
        if not _is_text(column.type):
            raise DataError(f"{source}: text column {name!r} holds {column.type}, not text")
        if column.null_count:
            lost = f"{column.null_count} of {len(column)} rows have no text in {name!r}"
            raise DataError(f"{source}: {lost}; drop these rows from the data")
        lists.append(_values(column, name, source))
    return list(zip(*lists, strict=True))


def conversations_of(table: pa.Table, name: str, source: str) -> list[Conversation]:
    """Return the messages of each row.

    Args:
        table: Arrow table.
        name: a column of lists of {role, content}, as Hugging Face chat data has them.
        source: for messages.

    Raises:
        DataError: messages without a role or content; counts the rows.
    """
    rows: list[Conversation] = []
    lost = 0
    for messages in _values(table.column(name), name, source):
        pairs = tuple((one.get("role"), one.get("content")) for one in messages or ())
        lost += not pairs or not all(isinstance(part, str) for pair in pairs for part in pair)
        rows.append(pairs)
    if lost:
        raise DataError(
            f"{source}: {lost} of {len(rows)} rows have no messages, or messages without a role or content, in "
            f"{name!r}: drop them"
        )
    return rows


def is_conversation(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds lists of {role, content}."""
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    return {"role", "content"} <= {kind.value_type.field(i).name for i in range(kind.value_type.num_fields)}


def labels_of(
    table: pa.Table, name: str, source: str, *, known: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return class ids, int64 (n,), and class names.

    Names of a Hugging Face ``ClassLabel`` are kept, and its ids with them. Other integers, booleans and texts are
    numbered in sorted order, integers numerically, and named as they are written.

    Args:
        table: Arrow table.
        name: the label column.
        source: for messages.
        known: class names of an earlier split: ids then follow these names, so that splits agree.

    Raises:
        DataError: labels are no classes, rows without a label (null, or -1 among integers), or a class that
            ``known`` lacks.
    """
    column = _plain(table.column(name))
    missing = column.null_count
    if _is_integer(column.type):
        missing += int(np.sum(_numbers(column) == UNLABELLED))
    if missing == len(column):
        raise DataError(f"{source}: no row has a label (null or -1, as in GLUE's test sets): use another split")
    if missing:
        raise DataError(
            f"{source}: {missing} of {len(column)} rows have no label (null or -1) in {name!r}: drop them; "
            "where -1 is a class, store labels as text or as 0, 1, 2 ..."
        )
    ids, names = _encode(column, class_names(table, name), name, source)
    if known is None:
        return ids, names
    unknown = sorted({names[i] for i in np.unique(ids)} - set(known))
    if unknown:
        raise DataError(
            f"{source}: {name!r} has classes {unknown[:5]} that the training split lacks: it has {list(known)}"
        )
    return _renumber(ids, names, known), known


def groups_of(
    table: pa.Table, name: str, source: str, *, known: tuple[str, ...] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return group ids, int64 (n,), and group names: those in ``known`` first, then new ones in sorted order.

    Raises:
        DataError: groups are neither integers, booleans nor text, or rows have none.
    """
    column = _plain(table.column(name))
    if column.null_count:
        raise DataError(f"{source}: {column.null_count} of {len(column)} rows have no group in {name!r}: fill them")
    ids, names = _encode(column, class_names(table, name), name, source)
    every = (*known, *(n for n in names if n not in known))
    return _renumber(ids, names, every), every


def class_names(table: pa.Table, name: str) -> tuple[str, ...] | None:
    """Return the names of a Hugging Face ``ClassLabel`` column, None where the schema has no such names."""
    if b"huggingface" not in (table.schema.metadata or {}):
        return None
    import datasets

    feature = datasets.Features.from_arrow_schema(table.schema).get(name)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _encode(
    column: pa.ChunkedArray, names: tuple[str, ...] | None, name: str, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    import pyarrow as pa

    if names is not None and _is_integer(column.type):
        ids = _numbers(column)
        if ids.min() < 0 or ids.max() >= len(names):
            raise DataError(f"{source}: ids in {name!r} must be in 0..{len(names) - 1}, got {ids.min()}..{ids.max()}")
        return ids, names
    if not (_is_integer(column.type) or _is_text(column.type) or pa.types.is_boolean(column.type)):
        raise DataError(f"{source}: {name!r} holds {column.type}; classes and groups must be integers or text")
    values, ids = np.unique(np.asarray(_values(column, name, source)), return_inverse=True)
    return ids.astype(np.int64), tuple(str(value) for value in values)


def _renumber(ids: np.ndarray, names: tuple[str, ...], order: tuple[str, ...]) -> np.ndarray:
    position = {name: i for i, name in enumerate(order)}
    # Declared names that no row carries may be absent from the order; their entry is never looked up.
    new_ids = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    return np.take(new_ids, ids)


def _values(column: pa.ChunkedArray, name: str, source: str) -> list[Any]:
    # Arrow checks the encoding of CSV only; other files fail here, where bytes become text.
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: column {name!r} is not UTF-8 ({error}): save the data as UTF-8") from error
    return values


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa

    numbers: np.ndarray = column.drop_null().cast(pa.int64()).to_numpy()
    return numbers


def _is_integer(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
