"""The folder of what a client keeps on its device, in use by one client at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fedpeft.client.own import LINK
from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.folder import write_file

_LOG_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ClientFolder:
    """Where things lie.

    Attributes:
        path: the folder, for its owner only.
    """

    path: Path

    @property
    def secret(self) -> Path:
        """What guards the node's port on the loopback against this device's other users."""
        return self.path / "runtime.secret"

    @property
    def node_log(self) -> Path:
        """The node's log."""
        return self.path / "node.log"

    @property
    def link(self) -> Path:
        """Where the node notes how long the last download took."""
        return self.path / LINK

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[ClientFolder]:
        """Take a folder into use, with a new secret; another client must not use it at the same time.

        Raises:
            ConfigError: it cannot be written, or is in use.
        """
        made = cls(path=path)
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(path / ".client.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror} (set --state-dir)") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(f"{path} is in use by another client (end it, or set --state-dir)") from error
        try:
            write_file(made.secret, secrets.token_bytes(32), private=True)
            yield made
        finally:
            os.close(lock)

    def log_here(self) -> None:
        """Send this process's log, and those of its forks, to ``client.log``; Flower's too."""
        if self.node_log.exists() and self.node_log.stat().st_size > _LOG_BYTES:
            self.node_log.replace(self.node_log.with_suffix(".log.1"))
        handler = RotatingFileHandler(self.path / "client.log", maxBytes=_LOG_BYTES, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        os.environ.setdefault("FLWR_HOME", str(self.path / "flower"))
        os.environ.setdefault("FLWR_LOG_LEVEL", "WARNING")
        # Forks inherit it, and threads do not survive a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Flower sets its logger up when it is imported.
        import flwr.app  # noqa: F401

        flower = logging.getLogger("flwr")
        flower.handlers.clear()
        flower.propagate = True
