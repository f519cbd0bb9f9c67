"""What every engine prepares before the first message: runtime, record and checkpoint."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpeft import __version__
from fedpeft import config as cfg
from fedpeft.client.runtime import Runtime
from fedpeft.core.errors import ConfigError
from fedpeft.core.events import Observer, RunFinished, tell
from fedpeft.core.types import Tensors
from fedpeft.privacy.statement import PrivacyStatement
from fedpeft.server.app import model_of
from fedpeft.server.checkpoint import Checkpoint, load_checkpoint
from fedpeft.server.evaluate import ShardMap
from fedpeft.server.files import write_json
from fedpeft.server.record import RunRecord
from fedpeft.server.rounds import Session
from fedpeft.server.samples import write_samples
from fedpeft.tasks.base import Scores

PACKAGES = ("flwr", "torch", "transformers", "peft", "opacus", "numpy", "hydra-core", "flwr-datasets", "datasets")


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    found = {
        "fedpeft": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return found | {name: version(name) for name in PACKAGES}


def count_workers(workers: int | str) -> int:
    """Return how many workers ``engine.workers`` means; ``auto`` is one for each core that this process may use.

    Raises:
        ConfigError: it is neither ``auto`` nor a whole number from 1.
    """
    if workers == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ConfigError(f"engine.workers must be auto or a whole number >= 1, got {workers!r}")
    return workers


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a run begins: anew, or where an earlier process left it.

    Attributes:
        checkpoint: where a resumed run goes on from, None for a new one.
        earlier: the summary of the process that wrote the checkpoint, {} for a new run.
        observers: told of everything after the record has been.
        started_at: ``time.time()`` when this run's process began.
    """

    checkpoint: Checkpoint | None
    earlier: Mapping[str, Any]
    observers: tuple[Observer, ...]
    started_at: float


def open_session(
    runtime: Runtime,
    start: Start,
    *,
    holdings: dict[str, Any],
    shard_map: ShardMap,
    workers: int,
    memory_mb: Callable[[], float],
    promise: PrivacyStatement | None = None,
    poll_s: float = 0.0,
    is_real: bool = False,
) -> Session:
    """Write what is known before the first round and return the session.

    Args:
        runtime: the run's model and data.
        start: where it begins, and who is told.
        holdings: who holds what, for ``data.json``.
        shard_map: spreads the server's evaluation.
        workers: processes that train at once.
        memory_mb: measures the process tree.
        promise: what the run's privacy promises.
        poll_s: see ``Session``.
        is_real: see ``Session``.
    """
    config = runtime.config
    run_dir = Path(config["run_dir"])
    write_json(run_dir / "data.json", holdings)
    record = RunRecord(
        run_dir,
        fixed={"name": config["name"], "workers": workers, "seed": config["seed"], "versions": versions()},
        started_at=start.started_at,
        group_names=runtime.examples.group_names,
        task_kind=config["task"]["kind"],
        memory_mb=memory_mb,
        # Without a checkpoint everything is done again: what a killed process put on record must not stay beside it.
        resume_after=start.checkpoint.server_round if start.checkpoint else 0,
        initial=start.earlier.get("initial"),
        private=promise is not None,
        delta=promise.delta if promise else None,
    )
    return Session(
        runtime=runtime,
        record=record,
        shard_map=shard_map,
        checkpoint=start.checkpoint,
        observers=(record, *start.observers),
        promise=promise,
        poll_s=poll_s,
        is_real=is_real,
    )


def close_session(session: Session, status: str) -> dict[str, Any]:
    """Write the final summary and, from the newest checkpoint, the adapter; return the summary."""
    runtime, run_dir = session.runtime, Path(session.runtime.config["run_dir"])
    newest = load_checkpoint(run_dir / "checkpoints")
    if newest is not None:
        base = runtime.model_path if not Path(runtime.model_path).exists() else os.path.abspath(runtime.model_path)
        # A head that never travelled is saved as it began: with another one the adapter would mean something else.
        final = model_of(runtime.config, newest)
        tensors = {**runtime.initial_head, **final}
        runtime.method.save(tensors, run_dir / "adapter", base_model=base, head_keys=frozenset(runtime.initial_head))
        if status == "finished":
            write_samples(run_dir, runtime, final)
    summary = session.record.write_summary(status)
    tell(session.observers, RunFinished(summary=summary))
    return summary


@contextmanager
def on_record(session: Session) -> Iterator[None]:
    """Put on record how rounds end that do not end well, and raise it again; a disk that failed is told nothing."""
    try:
        yield
    except KeyboardInterrupt:
        close_session(session, "interrupted")
        raise
    except Exception:
        with suppress(OSError):
            session.record.write_summary("failed")
        raise


def local_shard_map(runtime: Runtime) -> ShardMap:
    """Evaluate in this process, one part after the other."""

    def run(tensors: Tensors, shards: Sequence[int]) -> Iterator[tuple[int, Scores]]:
        for shard in shards:
            yield shard, runtime.evaluate_shard(tensors, shard)

    return run


def process_started_at() -> float:
    """Return the ``time.time()`` at which this process began, so that imports count as start-up."""
    import psutil

    return min(time.time(), float(psutil.Process().create_time()))


def travelling(config: cfg.Config) -> str:
    """Return the config as clients get it."""
    return cfg.to_json(config)
