"""What the server does after each round: evaluate, put it on record, save a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedpeft.client.app import CHECKPOINT_ROUND
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError
from fedpeft.core.events import Observer, RoundFinished, tell
from fedpeft.core.types import Tensors
from fedpeft.privacy.statement import PrivacyStatement
from fedpeft.server.checkpoint import Checkpoint, find_checkpoints, save_checkpoint
from fedpeft.server.evaluate import ShardMap, evaluate_global, mean_loss
from fedpeft.server.grid import ClockedGrid
from fedpeft.server.privacy import Books, write_promise
from fedpeft.server.record import RunRecord
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.memory import remember


@dataclass(frozen=True, kw_only=True)
class Session:
    """What an engine hands the server besides Flower's grid.

    Attributes:
        runtime: model, data and initial tensors.
        record: writes the run directory.
        shard_map: spreads the server's evaluation over the engine's workers.
        checkpoint: where to go on from, None to start at round 1.
        observers: told of everything, the record first.
        promise: what the run's privacy promises, None where there is none.
        poll_s: real seconds between two looks at a grid that does not wait by itself.
        stop: set when replies will not come any more.
        is_real: whether the clients are real devices.
    """

    runtime: Runtime
    record: RunRecord
    shard_map: ShardMap
    checkpoint: Checkpoint | None
    observers: tuple[Observer, ...]
    promise: PrivacyStatement | None = None
    poll_s: float = 0.0
    stop: Event = field(default_factory=Event)
    is_real: bool = False


class Rounds:
    """Evaluates, records and saves, called by the strategy: our own or Flower's.

    Args:
        session: the run.
        strategy: its state goes into checkpoints.
        clocked: its clock goes into the record and checkpoints.
        books: what the run's privacy has spent.
    """

    def __init__(self, session: Session, strategy: Strategy, clocked: ClockedGrid, books: Books) -> None:
        self._session = session
        self._books = books
        self._saved = 0
        self._strategy = strategy
        self._clocked = clocked
        self._search_cpu_s = 0.0
        self._folder = Path(session.runtime.config["run_dir"]) / "checkpoints"
        self.train_config = ConfigRecord({CHECKPOINT_ROUND: self._oldest_checkpoint()})
        """Sent with every training message: clients keep what a resume from the oldest kept checkpoint would need."""

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global tensors and put the round on record; round 0 is the model before training."""
        session = self._session
        tensors = self._tensors(arrays)
        metrics, cpu_s = evaluate_global(
            self._strategy.model_tensors(tensors) if isinstance(self._strategy, FedPeft) else tensors,
            num_shards=len(session.runtime.eval_shards),
            shard_map=session.shard_map,
            group_names=session.runtime.examples.group_names,
            task_kind=session.runtime.config["task"]["kind"],
            server_round=server_round,
            observers=session.observers,
        )
        cpu_s, self._search_cpu_s = cpu_s + self._search_cpu_s, 0.0
        if server_round == 0:
            session.record.initial(metrics, cpu_s)
            row: Mapping[str, Any] = {"round": 0, "eval": metrics}
        else:
            now_s = self._clocked.clock.now_s
            row = session.record.close_round(server_round, metrics, cpu_s, now_s, self._notes(), self._spent())
        tell(session.observers, RoundFinished(server_round=server_round, record=row))
        return MetricRecord(metrics)  # type: ignore[arg-type]

    def search_loss(self, tensors: Tensors) -> float:
        """Return a model's mean loss on the examples that strategies may search on, which ``evaluate`` never sees.

        Its CPU seconds count as those of the round's evaluation.
        """
        runtime = self._session.runtime
        loss, cpu_s = mean_loss(
            tensors,
            shards=range(len(runtime.eval_shards), len(runtime.parts)),
            shard_map=self._session.shard_map,
            num_groups=len(runtime.examples.group_names),
        )
        self._search_cpu_s += cpu_s
        return loss

    def save(self, server_round: int, arrays: ArrayRecord) -> None:
        """Write a checkpoint where one is due."""
        config = self._session.runtime.config
        if server_round % config["checkpoint"]["every"] and server_round != config["rounds"]:
            return
        self._write(server_round, arrays)

    def finish(self, arrays: ArrayRecord) -> None:
        """Write the last checkpoint of a run that ended before its last round."""
        if (done := self._session.record.rounds_done) > self._saved:
            self._write(done, arrays)

    def _write(self, server_round: int, arrays: ArrayRecord) -> None:
        self._saved = server_round
        config = self._session.runtime.config
        checkpoint = Checkpoint(
            server_round=server_round,
            tensors=self._tensors(arrays),
            state={**remember(self._strategy), **self._books.state(server_round)}
            if isinstance(self._strategy, FedPeft)
            else {},
            virtual_clock_s=self._clocked.clock.now_s,
            model_hash=self._session.runtime.identity.model_hash,
        )
        save_checkpoint(self._folder, checkpoint, config["checkpoint"]["keep"])
        self.train_config[CHECKPOINT_ROUND] = self._oldest_checkpoint()

    def evaluate_and_save(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Do both, for stock strategies: this is the only call they make after a round."""
        metrics = self.evaluate(server_round, arrays)
        if server_round:
            self.save(server_round, arrays)
        return metrics

    def _spent(self) -> float | None:
        """Return epsilon after this round, and write it into the run's promise."""
        session = self._session
        if session.promise is None:
            return None
        spent, releases = self._books.spent()
        run_dir = Path(session.runtime.config["run_dir"])
        write_promise(run_dir, session.promise, self._books.terms, spent, releases)
        return spent

    def _notes(self) -> dict[str, Any]:
        """Return the strategy's notes as JSON has them.

        Raises:
            ConfigError: they hold what JSON has not, e.g. numpy's numbers or NaN.
        """
        strategy = self._strategy
        if not isinstance(strategy, FedPeft):
            return {}
        try:
            return dict(json.loads(json.dumps(dict(strategy.notes()), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"strategy {type(strategy).__name__}: notes() must return plain JSON values, got: {error} (write "
                "float(x) or x.tolist())"
            ) from error

    def _oldest_checkpoint(self) -> int:
        """Return the round of the oldest kept checkpoint: a damaged newer one makes a resume fall back to it."""
        return min((server_round for server_round, _ in find_checkpoints(self._folder)), default=0)

    def _tensors(self, arrays: ArrayRecord) -> Tensors:
        """Return the global tensors in the dtypes they travel in; FedAdam makes float64 of float32."""
        spec = self._session.runtime.shared_spec
        return {key: value.astype(spec[key].dtype, copy=False) for key, value in wire.decode_own(arrays).items()}
