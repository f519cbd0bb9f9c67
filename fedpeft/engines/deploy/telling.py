"""Lines of JSON over a pipe: how a device's processes tell each other what happens."""

from __future__ import annotations

import json
import os
from typing import Any

Event = dict[str, Any]
"""What happened: ``kind`` and what belongs to it."""
_CHUNK = 1 << 16


class Teller:
    """The writing end.

    Args:
        fd: file descriptor of a pipe.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, kind: str, **values: Any) -> None:
        """Tell one thing; when nobody listens any more it is told to nobody."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except BrokenPipeError:
            return


class Hearer:
    """The reading end of a new pipe; ``write_fd`` is its other end.

    Attributes:
        fd: what can be waited for by ``select``.
        write_fd: for the process that tells; `told` closes it on this side.
    """

    def __init__(self) -> None:
        self.fd, self.write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        self._rest = b""
        self._open = True

    def told(self) -> None:
        """Close the writing end here, when the other process has it."""
        os.close(self.write_fd)

    def hear(self) -> list[Event]:
        """Return what has been told since the last call, without waiting."""
        while self._open:
            try:
                chunk = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                break
            if not chunk:
                break
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close the reading end."""
        if self._open:
            os.close(self.fd)
        self._open = False
