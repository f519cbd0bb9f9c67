"""What a real device brings to a run: its texts, its copy of the base model, its number."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.core.errors import ConfigError, DataError, printable
from fedpeft.core.version import __version__
from fedpeft.device_profiles.power import PowerMeter

DEPLOYED = "deployed"
"""Entry of a config for real devices: the server's version, and the names of ``labels`` and ``groups``, which no
single client may know."""
LINK = "link.json"
RUN_ID = re.compile(r"[A-Za-z0-9]{1,64}")


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The data and settings of one real device; nothing of it is the server's to choose.

    Args:
        path: a file or folder of parquet, csv or jsonl with the columns that the run's task names.
        client_id: the client's number, which its key is registered for.
        device: name of its device profile.
        profile: that profile as JSON, where the server cannot know it by its name.
        model: folder or hub id of its copy of the base model, None for the one that the run names.
        state_dir: folder of what it keeps for itself between rounds.
        accelerator: where the model computes, ``cpu`` or ``cuda``.
        max_epsilon: what all runs in ``state_dir`` together may spend of its examples' privacy, None for no limit.
        max_delta: the delta at which that is counted.
    """

    path: str
    client_id: int
    device: str = "unknown"
    profile: str = ""
    model: str | None = None
    state_dir: str | None = None
    accelerator: str = "cpu"
    max_epsilon: float | None = None
    max_delta: float = 1e-5

    def __post_init__(self) -> None:
        if self.client_id < 0:
            raise ConfigError(f"client id must be 0 or more, got {self.client_id} (set --id)")
        if not Path(self.path).exists():
            raise DataError(f"{self.path} does not exist (set --data to your file of texts)")

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's config with this device's paths; what is computed, and so the config's hash, stays.

        Raises:
            ConfigError: the run has no place for this client.
        """
        if not isinstance(config.get(DEPLOYED), Mapping):
            raise ConfigError("this run is a simulation: it was not started by fedpeft server")
        if self.client_id >= config["num_clients"]:
            raise ConfigError(
                f"this device is client {self.client_id}, but the run's last client is {config['num_clients'] - 1} "
                "(register it before the run starts)"
            )
        run_id = config.get("run_id")
        if not (isinstance(run_id, str) and RUN_ID.fullmatch(run_id)):
            # It names a folder on this device.
            raise ConfigError(f"run_id must be letters and digits, got {printable(repr(run_id))}")
        model = {**config["model"], "path": self.model or config["model"]["path"]}
        if (theirs := config[DEPLOYED].get("version")) != __version__:
            raise ConfigError(
                f"the server runs fedpeft {theirs}, this device {__version__} (install the same version on both)"
            )
        # Whatever splits there are at the server: this file is one.
        task = {**config["task"], "path": self.path, "split": "train", "revision": None, "extra_columns": []}
        return {**config, "model": model, "task": task}


@contextmanager
def measuring(own: OwnData | None) -> Iterator[dict[str, float]]:
    """Lend a dict that holds, after the block, what it took on this device, by names of ``MEASURED_METRICS``.

    The download is the node's to know, which notes its seconds in ``link.json`` of the state folder. Joules are told
    where the kernel shows what the machine draws; they are the whole machine's, not this process's alone.

    Args:
        own: the device, None for a simulated one, of which nothing is told.
    """
    found: dict[str, float] = {}
    if own is None:
        yield found
        return
    meter, began_s = PowerMeter(), time.monotonic()
    began = meter.begin()
    if own.accelerator == "cuda":
        _cuda().reset_peak_memory_stats()
    yield found
    found |= _measured_on(own, began_s)
    if own.accelerator == "cuda":
        # What is short there is the card's memory, and a process that stays has no peak of its own for each round.
        found["peak-memory-mb"] = _cuda().max_memory_reserved() / 2**20
    if (watts := meter.since(began)) is not None:
        found["energy-j"] = watts * found["train-wall-s"]


def _cuda() -> Any:
    import torch

    return torch.cuda


def _measured_on(own: OwnData, began_s: float) -> dict[str, float]:
    # A fork for each message begins with its parent's memory, so that its peak is this round's. macOS counts bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {
        "train-wall-s": time.monotonic() - began_s,
        "peak-memory-mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
    }
    try:
        down_s = json.loads((Path(own.state_dir or "") / LINK).read_text())["down_s"]
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return {**found, "down-s": float(down_s)} if isinstance(down_s, (int, float)) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class OneHolder:
    """A split in which one client holds everything that is here; see ``data.partition.Partition``.

    Attributes:
        client_id: who.
        num_rows: how much.
        num_clients: how many clients the run has.
    """

    client_id: int
    num_rows: int
    num_clients: int

    def sizes(self) -> np.ndarray:
        """Return how many rows each client holds here, int64 (num_clients,)."""
        found = np.zeros(self.num_clients, dtype=np.int64)
        found[self.client_id] = self.num_rows
        return found

    def indices(self, client_id: int) -> np.ndarray:
        """Return the row numbers that a client holds, int64 (m,).

        Raises:
            ConfigError: they are another device's.
        """
        if client_id != self.client_id:
            raise ConfigError(f"client {client_id}'s examples are not here: this device is client {self.client_id}")
        return np.arange(self.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldElsewhere:
    """The split as a server sees it that has no client's data.

    Attributes:
        num_clients: how many clients the run has.
    """

    num_clients: int

    def sizes(self) -> np.ndarray:
        """Return zeros: nothing is known here, int64 (num_clients,)."""
        return np.zeros(self.num_clients, dtype=np.int64)

    def indices(self, client_id: int) -> np.ndarray:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"client {client_id}'s examples are on its device and nowhere else")
