"""The ServerApp: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedpeft import config as cfg
from fedpeft.client.app import CHECKPOINT_ROUND
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.errors import CheckpointError, ConfigError
from fedpeft.core.events import Observer, RoundFinished, RunStarted, tell
from fedpeft.core.guard import UpdateGuard
from fedpeft.core.tensors import specs
from fedpeft.core.types import Cost, Work
from fedpeft.server.checkpoint import Checkpoint, save_checkpoint
from fedpeft.server.evaluate import ShardMap, evaluate_global
from fedpeft.server.grid import ClockedGrid
from fedpeft.server.record import RunRecord
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.roster import Roster


@dataclass(frozen=True, kw_only=True)
class Session:
    """What an engine hands the server besides Flower's grid.

    Attributes:
        runtime: model, data and initial tensors.
        record: writes the run directory.
        shard_map: spreads the server's evaluation over the engine's workers.
        checkpoint: where to go on from, None to start at round 1.
        observers: told of everything, the record first.
        poll_s: real seconds between two looks at a grid that does not wait by itself.
        stop: set when replies will not come any more.
    """

    runtime: Runtime
    record: RunRecord
    shard_map: ShardMap
    checkpoint: Checkpoint | None
    observers: tuple[Observer, ...]
    poll_s: float = 0.0
    stop: Event = field(default_factory=Event)


def build_server_app(session: Session) -> ServerApp:
    """Return a ServerApp that runs the session's config from its first open round to its last."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, session)

    return app


def build_strategy(config: Mapping[str, Any]) -> Strategy:
    """Return the strategy that the config names.

    Raises:
        ConfigError: it is no Flower strategy.
    """
    node = dict(config["strategy"])
    strategy = cfg.build(node)
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy {node.get('_target_')} is a {type(strategy).__name__}, not a flwr.serverapp.strategy.Strategy")
    if isinstance(strategy, FedPeft):
        strategy.guard = UpdateGuard(**config["guard"])
        strategy.selection = cfg.build(config["selection"])
    return strategy


def serve(grid: Grid, session: Session) -> None:
    """Run the rounds; everything that is worth keeping goes to the session's record and observers."""
    runtime, config = session.runtime, session.runtime.config
    strategy, roster = build_strategy(config), Roster()
    fleet = cfg.build(config["fleet"])
    profiles = {name: fleet.profile(name) for name in set(runtime.devices)}
    clocked = ClockedGrid(
        grid,
        roster=roster,
        predict=_predictor(profiles),
        dtype=runtime.dtype,
        deadline_s=config["round"]["deadline_s"],
        observers=session.observers,
        poll_s=session.poll_s,
        stop=session.stop,
    )
    start = _resume(session, strategy, clocked)
    clients = roster.refresh(clocked, timeout=config["round"]["timeout_s"])
    if not clients:
        raise ConfigError("no client answered (is any connected?)")
    rounds = _Rounds(session, clocked)
    train_config = ConfigRecord({CHECKPOINT_ROUND: start.server_round})
    session.record.started()
    event = RunStarted(
        name=config["name"],
        run_dir=config["run_dir"],
        first_round=start.server_round + 1,
        num_rounds=config["rounds"],
        num_clients=len(clients),
        cohort_size=config["cohort_size"],
    )
    tell(session.observers, event)
    common: dict[str, Any] = {
        "num_rounds": config["rounds"],
        "timeout": config["round"]["timeout_s"],
        "train_config": train_config,
        "evaluate_fn": rounds.evaluate,
    }
    initial = wire.encode(start.tensors)
    if isinstance(strategy, FedPeft):
        strategy.roster, strategy.identity = roster, runtime.identity
        strategy.observers = session.observers
        saver = _saver(session, strategy, clocked, train_config)
        strategy.start(clocked, initial, **common, first_round=start.server_round + 1, on_round_end=saver)
    else:
        strategy.start(clocked, initial, **common)


class _Rounds:
    """Evaluates and closes each round; called by the strategy, Flower's own or ours."""

    def __init__(self, session: Session, clocked: ClockedGrid) -> None:
        self._session = session
        self._clocked = clocked

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global tensors and put the round on record."""
        session, data = self._session, self._session.runtime.examples
        metrics, cpu_s = evaluate_global(
            wire.decode_own(arrays),
            num_shards=len(session.runtime.eval_shards),
            shard_map=session.shard_map,
            group_names=data.group_names,
            server_round=server_round,
            observers=session.observers,
        )
        if server_round == 0:
            session.record.initial(metrics, cpu_s)
            row: Mapping[str, Any] = {"round": 0, "eval": metrics}
        else:
            row = session.record.close_round(server_round, metrics, cpu_s, self._clocked.clock.now_s)
        tell(session.observers, RoundFinished(server_round=server_round, record=row))
        return MetricRecord(metrics)  # type: ignore[arg-type]


def _predictor(profiles: Mapping[str, Any]) -> Callable[[str, Work], Cost]:
    from fedpeft.device_profiles.predict import predict

    return lambda device, work: predict(profiles[device], work)


def _resume(session: Session, strategy: Strategy, clocked: ClockedGrid) -> Checkpoint:
    """Return where to start: the checkpoint, its state loaded, or the initial tensors as round 0.

    Raises:
        CheckpointError: the checkpoint belongs to another model, or the strategy cannot go on from one.
    """
    runtime, checkpoint = session.runtime, session.checkpoint
    if checkpoint is None:
        return Checkpoint(
            server_round=0, tensors=runtime.initial, state={}, virtual_clock_s=0.0, model_hash=runtime.identity.model_hash
        )
    if checkpoint.model_hash != runtime.identity.model_hash or specs(checkpoint.tensors) != runtime.shared_spec:
        raise CheckpointError("the checkpoint belongs to another base model or adapter (resume with the config it was made with)")
    if not isinstance(strategy, FedPeft):
        raise CheckpointError(f"{type(strategy).__name__} keeps its state to itself and cannot be resumed (start the run anew)")
    strategy.load_state(checkpoint.state)
    clocked.clock.now_s = checkpoint.virtual_clock_s
    return checkpoint


def _saver(session: Session, strategy: FedPeft, clocked: ClockedGrid, train_config: ConfigRecord) -> Callable[[int, ArrayRecord], None]:
    config = session.runtime.config
    folder = Path(config["run_dir"]) / "checkpoints"

    def save(server_round: int, arrays: ArrayRecord) -> None:
        if server_round % config["checkpoint"]["every"] and server_round != config["rounds"]:
            return
        checkpoint = Checkpoint(
            server_round=server_round,
            tensors=wire.decode_own(arrays),
            state=strategy.state(),
            virtual_clock_s=clocked.clock.now_s,
            model_hash=session.runtime.identity.model_hash,
        )
        save_checkpoint(folder, checkpoint, config["checkpoint"]["keep"])
        train_config[CHECKPOINT_ROUND] = server_round

    return save
