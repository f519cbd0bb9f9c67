"""Where the running server is: ``state.json`` in the state folder, for the administrator's commands."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.folder import read_file, write_file

FILE = "state.json"
DEFAULT_PORT = 8000


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """A server that runs, or ran last.

    Attributes:
        address: host and port that it listens at, e.g. ``0.0.0.0:8000``.
        run_dir: the run's folder.
        pid: the launcher's process.
    """

    address: str
    run_dir: str
    pid: int

    @classmethod
    def read(cls, folder: Path) -> Whereabouts | None:
        """Return what ``folder/state.json`` says, or None where no server has ever run.

        Raises:
            ConfigError: the file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = cls(**json.loads(read_file(path)))
            if not isinstance(found.run_dir, str) or isinstance(found.pid, bool) or not isinstance(found.pid, int):
                raise ValueError("run_dir must be text and pid a whole number")
            split_address(found.address)
        except (ValueError, TypeError, ConfigError) as error:
            raise ConfigError(f"{path} is damaged: {error} (delete it if no server runs)") from error
        return found

    def write(self, folder: Path) -> None:
        """Write ``folder/state.json``.

        Raises:
            ConfigError: it cannot be written.
        """
        write_file(folder / FILE, (json.dumps(asdict(self)) + "\n").encode())

    @property
    def alive(self) -> bool:
        """Whether a process has the launcher's id."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    @property
    def local_address(self) -> str:
        """The address at which this machine reaches the server: one for every interface has a loopback among them."""
        host, port = split_address(self.address)
        return join_address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a state folder for this server: another on the same database would end its runs.

    Raises:
        ConfigError: another server holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / ".server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror} (set server.state_dir)") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        there = Whereabouts.read(folder)
        who = f"the server at {there.address} (process {there.pid})" if there else "another server"
        raise ConfigError(f"{folder} is in use by {who}: end it, or set server.state_dir to another folder") from None
    finally:
        os.close(lock)


def add_device_hint(folder: Path) -> str:
    """Return the command that registers a device in a state folder."""
    return f"fedpeft server add-device NAME --state-dir {folder}"


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        ConfigError: it is none.
    """
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not colon
        or not bare
        or (":" in bare) is not (bare != host)
        or not port.isdecimal()
        or not 0 < int(port) < 65536
    ):
        raise ConfigError(f"address must be HOST:PORT, got {text!r} (such as fl.example.org:8000 or [::1]:8000)")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
