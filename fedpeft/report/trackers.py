"""Observers that pass a run's numbers on to TensorBoard or Weights & Biases while it goes on.

Both want ``pip install fedpeft[tracking]``. Neither opens anything before the first round is on record, i.e. before an
engine has made its workers; both write from the process that made them only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from fedpeft.core.errors import ConfigError
from fedpeft.core.events import Event, RoundFinished, RunFinished

Mode = Literal["offline", "online", "disabled"]
_SKIPPED = frozenset({"round"})


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a round's record: ``wall_s``, ``eval/accuracy``, ``dropped/late`` ...; null is left out."""
    for name, value in record.items():
        if name in _SKIPPED:
            continue
        inner = value.items() if isinstance(value, Mapping) else ((None, value),)
        for key, number in inner:
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield (name if key is None else f"{name}/{key}"), float(number)


class TensorBoardTracker:
    """Writes every number of every round into an event file under ``<run_dir>/tensorboard``.

    Records are written one by one from the caller's thread, so that there is none to be lost in a forked worker.

    Args:
        run_dir: the run's directory.

    Raises:
        ConfigError: the package ``tensorboard`` is missing.

    Example:
        >>> tracker = TensorBoardTracker("runs/demo")  # doctest: +SKIP
    """

    def __init__(self, run_dir: Path | str) -> None:
        try:
            import tensorboard.summary.writer.record_writer  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "the TensorBoard tracker needs the package tensorboard (pip install fedpeft[tracking])"
            ) from error
        self._folder = Path(run_dir) / "tensorboard"
        self._file: Any = None

    def __call__(self, event: Event) -> None:
        """Take one event; all but finished rounds and the end are ignored."""
        if isinstance(event, RoundFinished):
            self._write(event.server_round, dict(scalars(event.record)))
        elif isinstance(event, RunFinished):
            self.close()

    def __enter__(self) -> TensorBoardTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the event file; a later round opens a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Entry
        from tensorboard.compat.proto.summary_pb2 import Summary

        records = self._open()
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        records.write(Entry(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        records.flush()

    def _open(self) -> Any:
        if self._file is None:
            from tensorboard.compat.proto.event_pb2 import Event as Entry
            from tensorboard.summary.writer.record_writer import RecordWriter

            self._folder.mkdir(parents=True, exist_ok=True)
            now = time.time_ns()
            self._file = RecordWriter(
                (self._folder / f"events.out.tfevents.{now // 10**9:010d}.fedpeft.{now % 10**9:09d}").open("wb")
            )
            self._file.write(Entry(wall_time=now / 1e9, file_version="brain.Event:2").SerializeToString())
        return self._file


class WandbTracker:
    """Logs every number of every round, and the summary at the end, to Weights & Biases.

    Args:
        run_dir: the run's directory; its name becomes the run's name, ``<run_dir>/wandb`` holds the files.
        project: the project to log under.
        mode: ``offline`` keeps everything on this machine, ``online`` sends it, ``disabled`` does nothing.

    Raises:
        ConfigError: the package ``wandb`` is missing, or the mode is unknown.
    """

    def __init__(self, run_dir: Path | str, project: str, mode: Mode = "offline") -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"the wandb mode must be offline, online or disabled, got {mode!r}")
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "the Weights & Biases tracker needs the package wandb (pip install fedpeft[tracking])"
            ) from error
        self._folder, self._project, self._mode = Path(run_dir), project, mode
        self._run: Any = None

    def __call__(self, event: Event) -> None:
        """Take one event; all but finished rounds and the end are ignored."""
        if isinstance(event, RoundFinished):
            self._start().log(dict(scalars(event.record)), step=event.server_round)
        elif isinstance(event, RunFinished) and self._run is not None:
            self._run.summary.update(dict(scalars(event.summary)))
            self.close()

    def __enter__(self) -> WandbTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if error is None else 1)

    def close(self, exit_code: int = 0) -> None:
        """End the run in Weights & Biases."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def _start(self) -> Any:
        if self._run is None:
            import wandb

            self._folder.mkdir(parents=True, exist_ok=True)
            name = self._folder.resolve().name
            settings = wandb.Settings(silent=True, console="off")
            self._run = wandb.init(
                project=self._project, name=name, dir=str(self._folder), mode=self._mode, settings=settings
            )
        return self._run
