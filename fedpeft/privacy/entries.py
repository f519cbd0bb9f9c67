"""The lines of a privacy ledger: how one is written, and how a file of them is checked."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedpeft.core.errors import FedPeftError, PrivacyError
from fedpeft.privacy.accounting import Release

BEGINNING = "0" * 64
"""What the first line names as the hash before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line.

    Attributes:
        index: number of the line, from 0.
        unit: about whom it is: ``client 17`` or ``population``.
        server_round: the round it belongs to, from 1.
        run_id: the run it belongs to.
        dataset: names the data or the population.
        release: what was let out.
        previous: hash of the line before.
        hash: sha256 of everything else, as canonical JSON.
    """

    index: int
    unit: str
    server_round: int
    run_id: str
    dataset: str
    release: Release
    previous: str
    hash: str

    @classmethod
    def make(
        cls, *, index: int, unit: str, server_round: int, run_id: str, dataset: str, release: Release, previous: str
    ) -> Entry:
        """Return a line with its hash."""
        content = {
            "index": index,
            "unit": unit,
            "round": server_round,
            "run_id": run_id,
            "dataset": dataset,
            **asdict(release),
            "previous": previous,
        }
        return cls(
            index=index,
            unit=unit,
            server_round=server_round,
            run_id=run_id,
            dataset=dataset,
            release=release,
            previous=previous,
            hash=hashlib.sha256(canonical(content)).hexdigest(),
        )

    def line(self) -> bytes:
        """Return the line as it stands in the file, its end included."""
        data = asdict(self)
        data["round"] = data.pop("server_round")
        return canonical({**data.pop("release"), **data}) + b"\n"


def canonical(data: dict[str, Any]) -> bytes:
    """Return JSON that has one spelling: sorted keys, no spaces, ASCII, shortest floats that read back equal."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def read_entries(path: Path) -> tuple[list[Entry], bool]:
    """Return the lines of a ledger, and whether the last one was not whole.

    A last line without its end is kept where it is whole otherwise, and left out where it was cut off.

    Raises:
        PrivacyError: a line is not what was booked; says which and why.
        OSError: the file cannot be read.
    """
    *whole, rest = path.read_bytes().split(b"\n")
    entries: list[Entry] = []
    for number, line in enumerate(whole, start=1):
        entries.append(_read(line, entries, f"line {number} of {path}"))
    if rest and _is_json(rest):
        entries.append(_read(rest, entries, f"the last line of {path}"))
    return entries, bool(rest)


def _is_json(text: bytes) -> bool:
    """Return whether a line is whole: what a crash leaves of an object is never one."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read(line: bytes, before: list[Entry], where: str) -> Entry:
    """Return the entry of a line that follows others."""
    try:
        data = json.loads(line)
        entry = Entry.make(
            index=data["index"],
            unit=data["unit"],
            server_round=data["round"],
            run_id=data["run_id"],
            dataset=data["dataset"],
            release=Release(**{name: data[name] for name in Release.__dataclass_fields__}),
            previous=data["previous"],
        )
    except (ValueError, TypeError, KeyError, FedPeftError) as error:
        raise _refusal(f"{where} is no release: the ledger was edited or damaged ({error!r:.80})") from error
    expected = before[-1].hash if before else BEGINNING
    if entry.index != len(before):
        raise _refusal(f"{where} has number {entry.index} where {len(before)} belongs: lines are missing or moved")
    if entry.previous != expected:
        raise _refusal(f"{where} does not follow the line before it: lines were changed, cut out or moved")
    if entry.line() != line + b"\n":
        raise _refusal(f"{where} was edited: its content does not have its hash")
    return entry


def _refusal(what: str) -> PrivacyError:
    return PrivacyError(f"{what} (restore the ledger from a copy, or start a new run)")


def open_locked(path: Path) -> BinaryIO:
    """Return the file, open for appending and locked, its name on the disk; made where there is none.

    Raises:
        PrivacyError: another process has it open.
        OSError: it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise PrivacyError(
            f"the privacy ledger {path} is in use by another process: wait for it, or use another run_dir"
        ) from error
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return file


def append(file: BinaryIO, data: bytes) -> None:
    """Write all of it, and wait until it is on the disk."""
    while data:
        data = data[file.write(data) or 0 :]
    os.fsync(file.fileno())
