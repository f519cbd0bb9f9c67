"""The server's side of a run on real devices, inside Flower's ServerApp process."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedpeft.client.building import runtime_for
from fedpeft.client.holdings import describe_data
from fedpeft.core.errors import EngineError
from fedpeft.core.events import Preparing, tell
from fedpeft.engines.deploy.arriving_grid import ArrivingGrid
from fedpeft.engines.deploy.event_file import NAME, EventFile
from fedpeft.engines.deploy.named_grid import POLL_S, NamedGrid
from fedpeft.engines.flower_private import is_link_error
from fedpeft.engines.memory import tame_memory, tree_mb
from fedpeft.engines.session import Start, close_session, local_shard_map, on_record, open_session
from fedpeft.server.app import serve
from fedpeft.server.checkpoint import load_checkpoint
from fedpeft.server.privacy import promise, tell_promise

ALONE_S = 60.0
"""Seconds to wait for a ServerApp that was given up."""


def serve_run(grid: Grid, config_json: str, launch: Mapping[str, Any]) -> None:
    """Run a config from its first open round to its last.

    Args:
        grid: Flower's.
        config_json: the run's config, as devices get it.
        launch: ``nodes`` (path of what the launcher knows of the devices), ``wait_for`` (devices to wait for),
            ``resuming`` and ``earlier`` (the summary of the process before, {} for none), ``started_at``, ``folder``.
    """
    run_dir = Path(json.loads(config_json)["run_dir"])
    with _alone(run_dir):
        _tell_all(grid, config_json, launch, run_dir)


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Wait until no other ServerApp writes to a run directory: one that was given up may still breathe.

    Raises:
        EngineError: it does not end.
    """
    until = time.monotonic() + ALONE_S
    with (run_dir / ".serverapp.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise EngineError(f"another ServerApp still writes to {run_dir} (end it, then resume)") from None
            time.sleep(POLL_S)
        yield


def _tell_all(grid: Grid, config_json: str, launch: Mapping[str, Any], run_dir: Path) -> None:
    events = EventFile(run_dir / NAME)
    try:
        _serve(grid, config_json, launch, run_dir, events)
    except BaseException as error:
        # Without a word of failure, the launcher starts another ServerApp, from the last checkpoint.
        if not is_link_error(error):
            events.failed(error)
        raise
    finally:
        events.close()


def _serve(grid: Grid, config_json: str, launch: Mapping[str, Any], run_dir: Path, events: EventFile) -> None:
    tame_memory()
    tell((events,), Preparing(what="loading model and data"))
    runtime = runtime_for(config_json, None)
    arriving = ArrivingGrid(grid, max_bytes=runtime.config["guard"]["max_bytes"])
    named = NamedGrid(arriving, Path(launch["nodes"]))
    start = Start(
        checkpoint=load_checkpoint(run_dir / "checkpoints") if launch["resuming"] else None,
        earlier=launch["earlier"],
        observers=(events,),
        started_at=float(launch["started_at"]),
    )
    promised = promise(runtime, start.checkpoint.state if start.checkpoint else {})
    tell_promise((events,), promised)
    _wait_for(named, int(launch["wait_for"]), events)
    session = open_session(
        runtime,
        start,
        holdings=describe_data(runtime),
        shard_map=local_shard_map(runtime),
        # The devices' processes are theirs; nobody here waits for a share of them.
        workers=0,
        memory_mb=lambda: tree_mb([os.getpid()]),
        promise=promised,
        poll_s=POLL_S,
        is_real=True,
    )
    with on_record(session):
        serve(named, session)
    close_session(session, "finished")


def _wait_for(grid: NamedGrid, wanted: int, events: EventFile) -> None:
    """Wait until so many devices are online."""
    told = -1
    while (there := len(list(grid.get_node_ids()))) < wanted:
        if there != told:
            tell((events,), Preparing(what=f"waiting for devices: {there} of {wanted} are there"))
            told = there
        time.sleep(5 * POLL_S)
