"""Read columns of a local folder, a local file or a Hugging Face dataset into an Arrow table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".jsonl")
"""Kinds of local files; everything else in a folder (README.md, *.json ...) is passed over."""

# The words that datasets.load_dataset looks for in file names, too.
_SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
_SPLIT_OF |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLIT_OF)})(?=[-_.]|$)", re.IGNORECASE)
_JSON_BLOCK_BYTES = 16 << 20


def read_local(path: Path, *, split: str, columns: Sequence[str], text_columns: Sequence[str]) -> pa.Table:
    """Return the given columns of one split of a local folder or file.

    A file belongs to the split that its name begins with: ``train`` (or ``training``), ``validation`` (``valid``,
    ``val``, ``dev``) or ``test`` (``testing``, ``eval``), followed by nothing, ``-``, ``_`` or ``.``. Where no name in
    a folder says so, all files are ``train``. A path that names one file is taken for ``train`` whatever its name.
    Shards are joined in the order of their names.

    Args:
        path: an existing folder or file.
        split: which split.
        columns: all columns wanted.
        text_columns: those of them that must be read as text, even where a CSV column looks like numbers.

    Raises:
        DataError: no data files, mixed kinds, no such split, missing columns, or a file that cannot be read.
    """
    import pyarrow as pa

    tables = [_read_file(file, columns, text_columns) for file in files_of_split(path, split)]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"files of split {split!r} in {path} have different columns: {_first_line(error)}") from error
    if table.num_rows == 0:
        raise DataError(f"split {split!r} in {path} has no rows")
    return table


def files_of_split(path: Path, split: str) -> list[Path]:
    """Return the data files of one split, sorted by name; the rule stands in `read_local`.

    Raises:
        DataError: no data files, mixed kinds, files without a split's name among files with one, or no such split.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path.name} is no data file: expected one of {', '.join(SUFFIXES)}")
        files = [path]
    else:
        files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path} holds no data files: expected {', '.join(SUFFIXES)} in it, not in folders below it")
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise DataError(f"{path} mixes {' and '.join(kinds)}: keep one kind of file in a folder")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        named = _SPLIT_NAME.match(file.stem)
        by_split.setdefault(_SPLIT_OF[named[1].lower()] if named else "", []).append(file)
    unnamed = by_split.pop("", [])
    if unnamed and by_split:
        raise DataError(f"{path}: {unnamed[0].name} belongs to no split: begin its name with train, validation or test")
    if path.is_file() and split == "train":
        return files
    by_split = by_split or {"train": unnamed}
    if split not in by_split:
        raise DataError(f"{path} has no split {split!r}: there are {', '.join(sorted(by_split))}")
    return by_split[split]


def read_hub(name: str, *, split: str, columns: Sequence[str], revision: str | None = None) -> pa.Table:
    """Return the given columns of one split of a dataset of the Hugging Face hub, by ``datasets.load_dataset``.

    Args:
        name: ``owner/dataset``, or ``owner/dataset:config`` where a dataset has several configurations.
        split: which split, as the dataset calls it.
        columns: all columns wanted.
        revision: branch, tag or commit.

    Raises:
        DataError: the hub cannot be reached, or it has no such dataset, configuration, split or column.
    """
    import datasets

    path, _, config = name.partition(":")
    try:
        dataset = datasets.load_dataset(path, config or None, split=split, revision=revision)
    except Exception as error:  # datasets and the hub client raise whatever their layers raise
        raise DataError(
            f"cannot load split {split!r} of {name!r} from the Hugging Face hub (no local path has that name): "
            f"{_first_line(error)}"
        ) from error
    check_columns(name, columns, dataset.column_names)
    table: pa.Table = dataset.select_columns(list(columns)).with_format("arrow")[:]
    return table.replace_schema_metadata(dataset.select_columns(list(columns)).features.arrow_schema.metadata)


def check_columns(source: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise DataError where a wanted column is not there; the message lists those that are."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DataError(f"{source} has no column {', '.join(map(repr, missing))}: there are {', '.join(there)}")


def _read_file(file: Path, columns: Sequence[str], text_columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    read = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}[file.suffix.lower()]
    try:
        return read(file, columns, text_columns)
    except (pa.ArrowException, UnicodeDecodeError, OSError, KeyError) as error:
        raise DataError(f"cannot read {file}: {_first_line(error)}") from error


def _read_parquet(file: Path, columns: Sequence[str], _: Sequence[str]) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as source:
        check_columns(str(file), columns, source.schema_arrow.names)
        return source.read(columns=list(columns))


def _read_csv(file: Path, columns: Sequence[str], text_columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(
        file,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types={name: pa.string() for name in text_columns}),
    )
    check_columns(str(file), columns, table.column_names)
    return table.select(list(columns))


def _read_jsonl(file: Path, columns: Sequence[str], _: Sequence[str]) -> pa.Table:
    from pyarrow import json

    # A line longer than a block cannot be parsed, and a document is a line here.
    table = json.read_json(file, read_options=json.ReadOptions(block_size=_JSON_BLOCK_BYTES))
    check_columns(str(file), columns, table.column_names)
    return table.select(list(columns))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
