"""A run's events as lines of a file: the ServerApp's process writes them, the launcher follows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from fedpeft.core.errors import FedPeftError
from fedpeft.core.events import Event
from fedpeft.core.types import Cost

NAME = "events.jsonl"
_KINDS = {kind.__name__: kind for kind in get_args(Event)}
_COSTS = ("cost", "predicted")


class EventFile:
    """An observer that appends each event to a file; a new one for each start of the ServerApp.

    Args:
        path: the file; what stands in it from an earlier start is overwritten.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("w", encoding="utf-8", buffering=1)

    def __call__(self, event: Event) -> None:
        """Write one line."""
        self._line({"event": type(event).__name__, **asdict(event)})

    def failed(self, error: BaseException) -> None:
        """Write why there will be no more."""
        text = str(error) if isinstance(error, FedPeftError) else f"{type(error).__name__}: {error}"
        self._line({"failed": text, "exit_code": getattr(error, "exit_code", 1)})

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _line(self, data: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(data) + "\n")


class Follower:
    """Reads the events that a file gets.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._inode: int | None = None

    def new(self) -> Iterator[Event | ServerFailedError]:
        """Yield what has been written since the last call; a file that was begun anew is read from its beginning."""
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                if found.st_ino != self._inode or found.st_size < self._read:
                    self._inode, self._read = found.st_ino, 0
                stream.seek(self._read)
                data = stream.read()
        except FileNotFoundError:
            return
        # The last line may be half written.
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            yield _read(json.loads(line))


class ServerFailedError(FedPeftError):
    """The ServerApp ended with an error.

    Args:
        reason: what it said.
        exit_code: what the command line exits with.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(reason)


def _read(data: dict[str, Any]) -> Event | ServerFailedError:
    if "failed" in data:
        return ServerFailedError(str(data["failed"]), int(data["exit_code"]))
    kind = _KINDS[data.pop("event")]
    for name in _COSTS:
        if isinstance(data.get(name), dict):
            data[name] = Cost(**data[name])
    if "lines" in data:
        data["lines"] = tuple(data["lines"])
    event: Event = kind(**data)
    return event
