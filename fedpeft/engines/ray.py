"""Flower's own simulation on Ray, with the same ServerApp and ClientApp."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpeft import config as cfg
from fedpeft.client.app import build_app
from fedpeft.client.building import runtime_for
from fedpeft.client.holdings import describe_data
from fedpeft.core.errors import ConfigError, EngineError, FedPeftError
from fedpeft.core.events import Preparing, tell
from fedpeft.engines.memory import KERNEL_CACHES, tame_memory, tree_mb
from fedpeft.engines.session import (
    Start,
    close_session,
    count_workers,
    local_shard_map,
    on_record,
    open_session,
    travelling,
)
from fedpeft.server.app import serve
from fedpeft.server.privacy import promise, tell_promise
from fedpeft.server.rounds import Session

WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **KERNEL_CACHES}


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Runs clients in Ray actors through ``flwr.simulation.run_simulation``, on this machine or on a running cluster.

    Every actor loads its own base model, and the server evaluates in the launcher. Results are bit-identical to the
    in-process engine on machines with the same CPU features. On a cluster the run directory must lie on a file system
    that every machine sees when clients keep a ``local`` head.

    Args:
        workers: client actors, or ``auto`` for one on each core.
        address: of a running Ray cluster, None to start Ray here.

    Raises:
        ConfigError: workers is neither, or Ray is not installed.
    """

    workers: int | str = "auto"
    address: str | None = None

    def __post_init__(self) -> None:
        count_workers(self.workers)
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("engine=ray needs the package ray (pip install fedpeft[ray], or use engine=inprocess)")

    def run(self, config: cfg.Config, start: Start) -> dict[str, Any]:
        """Run a config to its end and return the summary; Ctrl-C is recorded and raised again."""
        tame_memory()
        workers = count_workers(self.workers)
        config_json = travelling(config)
        tell(start.observers, Preparing(what="loading model and data"))
        runtime = runtime_for(config_json, None)
        tell(
            start.observers, Preparing(what=f"connecting to Ray at {self.address}" if self.address else "starting Ray")
        )
        promised = promise(runtime, start.checkpoint.state if start.checkpoint else {})
        tell_promise(start.observers, promised)
        session = open_session(
            runtime,
            start,
            holdings=describe_data(runtime),
            shard_map=local_shard_map(runtime),
            workers=workers,
            memory_mb=lambda: tree_mb(_tree()),
            promise=promised,
            poll_s=0.05,
        )
        try:
            with on_record(session):
                self._simulate(session, config_json, workers)
        except Exception as error:
            raise _cause(error) from error
        return close_session(session, "finished")

    def _simulate(self, session: Session, config_json: str, workers: int) -> None:
        import ray
        from flwr.simulation import run_simulation

        init: dict[str, Any] = (
            {"address": self.address} if self.address else {"num_cpus": workers, "include_dashboard": False}
        )
        environment = {
            "env_vars": {**WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        }
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        # Flower passes its own runtime environment to ray.init and takes a Ray that runs already as it is.
        ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **init)
        server_app, ended = _server_app(session)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_simulation(
                    server_app=server_app,
                    client_app=build_app(config_json, None),
                    num_supernodes=session.runtime.config["num_clients"],
                    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
                )
        finally:
            # The ServerApp runs in a thread of its own, which nobody else tells that the simulation is over.
            session.stop.set()
            ended.wait(timeout=30)
            ray.shutdown()


def _server_app(session: Session) -> tuple[ServerApp, threading.Event]:
    """Return the ServerApp and an event that is set when it has ended."""
    app, ended = ServerApp(), threading.Event()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            serve(grid, session)
        finally:
            ended.set()

    return app, ended


def _tree() -> list[int]:
    """Return this process and its descendants; actors on other machines are not counted."""
    import psutil

    me = psutil.Process()
    return [me.pid, *(child.pid for child in me.children(recursive=True))]


def _cause(error: BaseException) -> FedPeftError:
    """Return our own error from inside Flower's, or one line about what went wrong."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, FedPeftError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return EngineError(f"Flower's simulation failed: {str(error).strip() or type(error).__name__}")
