"""Files that are whole or not there, and lines that are whole or cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.errors import CheckpointError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new.

    Args:
        path: the file; its folder exists.
        data: the content.
        mode: its permissions before the umask. The content is at no moment readable to more than that.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # An older process with this id may have died and left one that others can read.
    temporary.unlink(missing_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines in one write."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with open(path, "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, each with its ``round``; a last line that a crash cut off is left out.

    Raises:
        CheckpointError: another line is damaged: cutting there would lose the rounds behind it.
    """
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["round"], int):
                raise TypeError("round is no whole number")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise CheckpointError(f"{path} line {number} is damaged (restore the file, or delete that line)") from error
        rows.append(row)
    return rows


def keep_rounds(path: Path, last_round: int) -> list[dict[str, Any]]:
    """Cut a JSON-lines file back to rounds up to ``last_round`` and return what stays."""
    rows = [row for row in read_lines(path) if row["round"] <= last_round]
    if path.is_file():
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return rows
