"""Personal state: what a client keeps for itself between rounds, as files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import DataError
from fedpeft.core.types import Tensors

_NAME = re.compile(r"round-(\d+)\.safetensors")


class PersonalState:
    """One client's own tensors, a file for each round it trained in.

    A client that trains round r starts from its newest file before r. A round that is replayed after a crash therefore
    starts from what it started from the first time, however far the client had come.

    Args:
        folder: ``<state_dir>/client-<id>``; made on the first save.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def load(self, before_round: int) -> Tensors:
        """Return the newest state from before a round, {} when the client has not trained before.

        Raises:
            DataError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        rounds = [r for r in self._rounds() if r < before_round]
        if not rounds:
            return {}
        path = self._path(max(rounds))
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path} cannot be read: {error} (remove it to start this client's own part anew)"
            ) from error

    def save(self, server_round: int, tensors: Tensors, keep_from: int) -> None:
        """Write the state after a round; states older than the newest one up to ``keep_from`` are removed.

        Args:
            server_round: the round that was trained.
            tensors: what to keep.
            keep_from: the server's oldest kept checkpoint: a resumed run starts after it or after a later one.
        """
        from safetensors.numpy import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{os.getpid()}.tmp"
        save_file(dict(tensors), temporary)
        os.replace(temporary, self._path(server_round))
        needed = max((r for r in self._rounds() if r <= keep_from), default=0)
        for old in self._rounds():
            if old < needed:
                self._path(old).unlink(missing_ok=True)

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06d}.safetensors"

    def _rounds(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(match[1]) for name in os.listdir(self._folder) if (match := _NAME.fullmatch(name))]


def personal_state(config: Mapping[str, Any], client_id: int, folder: str | None = None) -> PersonalState:
    """Return where a client keeps its own tensors: ``folder``, else in the run directory."""
    root = Path(folder) if folder else Path(config["run_dir"]) / "checkpoints" / "clients"
    return PersonalState(root / f"client-{client_id:06d}")
