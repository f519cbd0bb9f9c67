"""The server's state folder: one writer at a time, and private files that nobody else can read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.server.files import write_atomic

PRIVATE = 0o600
"""Permissions of a private key: its owner reads and writes it, nobody else does either."""


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other process holds ``folder/.NAME.lock``, then hold it.

    Args:
        folder: made, for its owner only, if it is not there.
        name: what the lock guards.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(folder / f".{name}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror} (choose another state folder)") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file atomically, a private one with mode 0600.

    Raises:
        ConfigError: it cannot be written, e.g. because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, data, mode=PRIVATE if private else 0o644)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror} (free space or choose another folder)"
        ) from error


def read_file(path: Path, *, private: bool = False) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        private: whether to refuse a file that its group or others can read or write.

    Raises:
        ConfigError: it is not there, cannot be read, or its permissions are too open.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if private and mode & 0o077:
                raise ConfigError(f"{path} can be read by others: its mode is {mode:03o} (run: chmod 600 {path})")
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror} (check the path and its permissions)") from error
