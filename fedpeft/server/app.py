"""The ServerApp: the same for every engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedpeft import config as cfg
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.errors import CheckpointError, ConfigError, EngineError
from fedpeft.core.events import RunStarted, tell
from fedpeft.core.guard import UpdateGuard
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors
from fedpeft.selection.base import Moment
from fedpeft.selection.uniform import Uniform
from fedpeft.server.checkpoint import Checkpoint
from fedpeft.server.devices import SimulatedDevices
from fedpeft.server.feedback import Feedback
from fedpeft.server.fitting import Fitting
from fedpeft.server.grid import ClockedGrid
from fedpeft.server.privacy import Books, private_rounds
from fedpeft.server.real_devices import RealDevices
from fedpeft.server.real_fitting import RealFitting
from fedpeft.server.rounds import Rounds, Session
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.buffer import Buffer
from fedpeft.strategies.memory import recall
from fedpeft.strategies.private import PrivateRounds
from fedpeft.strategies.roster import Roster
from fedpeft.strategies.surroundings import Surroundings
from fedpeft.tasks.models import is_quantised


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
        raise ConfigError(
            f"strategy {node.get('_target_')} is a {type(strategy).__name__}, not a flwr.serverapp.strategy.Strategy"
        )
    if isinstance(strategy, FedPeft):
        # What a strategy brings of its own goes before the config's.
        if strategy.guard == UpdateGuard():
            strategy.guard = UpdateGuard(**config["guard"])
        if isinstance(strategy.selection, Uniform):
            strategy.selection = cfg.build(config["selection"])
        strategy.codec = cfg.build(config["codec"])
    return strategy


def serve(grid: Grid, session: Session) -> None:
    """Run the rounds; everything that is worth keeping goes to the session's record and observers."""
    with private_rounds(session.runtime) as privacy:
        _serve(grid, session, privacy)


def _serve(grid: Grid, session: Session, privacy: PrivateRounds | None) -> None:
    runtime, config = session.runtime, session.runtime.config
    strategy, roster = build_strategy(config), Roster()
    _refuse_unsound(strategy, runtime)
    devices = RealDevices.of(runtime) if session.is_real else SimulatedDevices.of(runtime)
    observers = session.observers
    fitting: RealFitting | None = None
    if isinstance(strategy, FedPeft):
        observers = (*observers, Feedback(strategy.selection))
        if session.is_real and config["devices"]["fit"]:
            fitting = RealFitting(runtime=runtime, strategy=strategy)
            observers = (*observers, fitting)
    clocked = ClockedGrid(
        grid,
        roster=roster,
        world=devices.world,
        dtype=runtime.dtype,
        deadline_s=config["round"]["deadline_s"],
        wanted=_wanted(strategy, config),
        keeps_time=config["round"]["buffer_size"] is None,
        observers=observers,
        poll_s=session.poll_s,
        stop=session.stop,
    )
    rounds = Rounds(session, strategy, clocked, Books(runtime, privacy))
    if isinstance(strategy, FedPeft):
        strategy.roster, strategy.observers = roster, observers
        strategy.search_loss = rounds.search_loss if len(runtime.examples.search_rows) else None
        _settle_in(strategy, runtime, devices, clocked, privacy, fitting)
    start = _resume(session, strategy, clocked)
    roster.observers = observers
    clients = roster.refresh(clocked, timeout=config["round"]["timeout_s"])
    if not clients:
        _say_why_nobody(roster)
    session.record.started()
    tell(session.observers, beginning(config, start.server_round + 1, len(clients), is_real=session.is_real))
    common: dict[str, Any] = {
        "num_rounds": config["rounds"],
        "timeout": config["round"]["timeout_s"],
        "train_config": rounds.train_config,
    }
    initial = wire.encode(start.tensors)
    if isinstance(strategy, FedPeft):
        first = start.server_round + 1
        result = strategy.start(
            clocked, initial, **common, evaluate_fn=rounds.evaluate, first_round=first, on_round_end=rounds.save
        )
        rounds.finish(result.arrays)
    else:
        strategy.start(clocked, initial, **common, evaluate_fn=rounds.evaluate_and_save)


def _settle_in(
    strategy: FedPeft,
    runtime: Runtime,
    devices: SimulatedDevices | RealDevices,
    clocked: ClockedGrid,
    privacy: PrivateRounds | None,
    real_fitting: RealFitting | None,
) -> None:
    """Give one of our own strategies what surrounds it: the run, time, devices, privacy."""
    config, ranks, orders = runtime.config, runtime.ranks, real_fitting.orders if real_fitting else None
    if isinstance(devices, SimulatedDevices) and config["devices"]["fit"]:
        fitting = Fitting.of(runtime, strategy, devices.fleet)
        ranks, orders = fitting.ranks(ranks), fitting.orders
    strategy.identity = runtime.identity
    strategy.view = replace(strategy.view, ranks=ranks)
    strategy.measure_error = config["evaluate"]["product_error"]
    if privacy is not None:
        # A round's median change depends on all clients; under privacy each must be judged by itself.
        strategy.guard = replace(strategy.guard, norm_factor=math.inf)
    strategy.around = Surroundings(
        clock=clocked.clock,
        moment=lambda server_round: Moment(
            server_round=server_round,
            now_s=clocked.clock.now_s,
            deadline_s=config["round"]["deadline_s"],
            expected=devices.expected,
        ),
        present=lambda clients: devices.present(clients, clocked.clock),
        orders=orders,
        over_selection=config["round"]["over_selection"],
        buffer=_buffer(config),
        privacy=privacy,
    )


def _wanted(strategy: Strategy, config: Mapping[str, Any]) -> int | None:
    """Return how many replies end a training exchange, None for all."""
    over = config["round"]["over_selection"] > 1 and config["round"]["buffer_size"] is None
    return int(config["cohort_size"]) if over and isinstance(strategy, FedPeft) else None


def _buffer(config: Mapping[str, Any]) -> Buffer | None:
    """Return the buffer of asynchronous rounds, None where a round waits for its cohort."""
    settings = config["round"]
    if settings["buffer_size"] is None:
        return None
    return Buffer(
        settings["buffer_size"],
        config["cohort_size"],
        exponent=settings["staleness_exponent"],
        max_staleness=settings["max_staleness"],
    )


def _refuse_unsound(strategy: Strategy, runtime: Runtime) -> None:
    """Refuse what only the loaded model shows.

    Raises:
        ConfigError: clients would add to weights that are stored in 8 or 4 bits.
    """
    stored = is_quantised(runtime.tunable.model)
    if stored and getattr(strategy, "merges", False):
        raise ConfigError(
            f"strategy {type(strategy).__name__} adds to the base's weights, which {runtime.model_path} stores in "
            f"{stored} (choose a model in float32 or bfloat16, or a strategy that does not merge, e.g. "
            "strategy=flexlora)"
        )


def model_of(config: Mapping[str, Any], checkpoint: Checkpoint) -> Tensors:
    """Return the tensors of the model that a checkpoint stands for, as its strategy sees it."""
    strategy = build_strategy(config)
    if not isinstance(strategy, FedPeft):
        return dict(checkpoint.tensors)
    recall(strategy, checkpoint.state)
    return strategy.model_tensors(dict(checkpoint.tensors))


def _say_why_nobody(roster: Roster) -> NoReturn:
    """End a run that no client takes part in.

    Raises:
        EngineError: every device that is there is left out.
        ConfigError: there is none.
    """
    if roster.left_out:
        reasons = "; ".join(dict.fromkeys(roster.left_out.values()))
        raise EngineError(f"every device that is there is left out: {reasons}")
    raise ConfigError("no client answered (is any connected?)")


def beginning(config: Mapping[str, Any], first_round: int, num_clients: int, *, is_real: bool) -> RunStarted:
    """Return what is told of a run that begins.

    Args:
        config: the run's.
        first_round: its first.
        num_clients: clients that are there; real devices may be fewer than a cohort, and come later.
        is_real: whether they are devices.
    """
    return RunStarted(
        name=config["name"],
        run_dir=config["run_dir"],
        first_round=first_round,
        num_rounds=config["rounds"],
        num_clients=num_clients,
        cohort_size=min(config["cohort_size"], num_clients),
        is_real=is_real,
    )


def _resume(session: Session, strategy: Strategy, clocked: ClockedGrid) -> Checkpoint:
    """Return where to start: the checkpoint, its state loaded, or the initial tensors as round 0.

    Raises:
        CheckpointError: the checkpoint belongs to another model, or the strategy cannot go on from one.
    """
    runtime, checkpoint = session.runtime, session.checkpoint
    if checkpoint is None:
        return Checkpoint(
            server_round=0,
            tensors=runtime.initial,
            state={},
            virtual_clock_s=0.0,
            model_hash=runtime.identity.model_hash,
        )
    if checkpoint.model_hash != runtime.identity.model_hash or specs(checkpoint.tensors) != runtime.shared_spec:
        raise CheckpointError(
            "the checkpoint belongs to another base model or adapter (resume with the config it was made with)"
        )
    if not isinstance(strategy, FedPeft):
        raise CheckpointError(
            f"{type(strategy).__name__} keeps its state to itself and cannot be resumed (start the run anew)"
        )
    recall(strategy, checkpoint.state)
    clocked.clock.now_s = checkpoint.virtual_clock_s
    return checkpoint
