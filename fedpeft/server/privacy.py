"""What a run promises before it starts, and what has been spent of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.client.private_round import prepare
from fedpeft.client.runtime import Runtime
from fedpeft.config import is_deployed
from fedpeft.core.errors import ConfigError
from fedpeft.core.events import Observer, PrivacyPromised, tell
from fedpeft.privacy.client_level import ClientLevel
from fedpeft.privacy.client_run import ClientLevelRun
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.privacy.ledger import LEDGER, Ledger
from fedpeft.privacy.local import Local
from fedpeft.privacy.statement import STATEMENT, TERMS, PrivacyStatement
from fedpeft.server.accounted import of_clients, of_population
from fedpeft.server.audit import audit, check_heads
from fedpeft.server.checkpoint import Checkpoint, StateValue
from fedpeft.server.files import write_json
from fedpeft.server.record import ROUNDS
from fedpeft.server.terms import DONE, HEADS, KEPT, check_terms, level_of, terms_of
from fedpeft.strategies.private import PrivateRounds

OURS = "privacy."
"""Prefix of what client-level privacy keeps in a checkpoint."""
NOISE_MULTIPLIER = OURS + "noise_multiplier"


def promise(runtime: Runtime, state: Mapping[str, StateValue]) -> PrivacyStatement | None:
    """Return what the config's privacy promises, None where there is none; call it before any worker is forked.

    Under example-level privacy it tries on the real model and method whether single examples are told apart soundly.

    Args:
        runtime: the run.
        state: of the checkpoint that a run goes on from, {} for a new one: it keeps the noise that it began with.

    Raises:
        PrivacyError: the method fails the self-test on this model.
        ConfigError: the settings cannot be met with these clients.
    """
    level, config = runtime.privacy, runtime.config
    if level is None:
        return None
    remaining = int(config["rounds"]) - int(state.get(DONE, 0))
    if isinstance(level, ExampleLevel):
        return of_clients(prepare(runtime, level), runtime, level, remaining)
    if isinstance(level, ClientLevel):
        plan = _plan(level, config)
        plan.noise_multiplier = float(state.get(NOISE_MULTIPLIER, plan.noise_multiplier))
        return of_population(plan.statement(), plan, Path(config["run_dir"]), remaining)
    if isinstance(level, Local):
        return of_clients(_local_promise(runtime, level), runtime, level, remaining)
    raise ConfigError(f"privacy {type(level).__name__} is none of client_level, example_level, local (choose one)")


def tell_promise(observers: tuple[Observer, ...], promised: PrivacyStatement | None) -> None:
    """Show what is promised before anybody is asked."""
    if promised is not None:
        tell(observers, PrivacyPromised(lines=tuple(promised.lines())))


def write_promise(
    run_dir: Path, statement: PrivacyStatement, terms: Mapping[str, Any], spent: float | None, releases: int
) -> None:
    """Write ``privacy.json``: the statement, its terms, and what has been spent (None where only clients know)."""
    told = "inf" if spent == math.inf else spent
    write_json(run_dir / STATEMENT, {**statement.to_dict(), TERMS: terms, "spent": told, "releases": releases})


def check_ledgers(config: Mapping[str, Any], checkpoint: Checkpoint | None, finished: bool) -> None:
    """Refuse to begin with ledgers that were edited or lack what the run has on record, or under another promise.

    A run that was killed with its budget spent may go on: it saves its last model and ends.

    Args:
        config: the plain config, ``run_dir`` filled in.
        checkpoint: where the run goes on from, None to begin.
        finished: whether the run in ``run_dir`` has come to its end before.

    Raises:
        PrivacyError: says which ledger or setting, and why not.
    """
    state, run_dir = checkpoint.state if checkpoint else {}, Path(config["run_dir"])
    level = level_of(config)
    check_heads(run_dir, state)
    if state or (run_dir / ROUNDS).exists():
        check_terms(config, level, state)
        if level is not None:
            audit(run_dir, level=level.name, run_id=config["run_id"], on_devices=is_deployed(config))
    if not isinstance(level, ClientLevel) or not (state or (run_dir / LEDGER).exists()):
        return
    rounds = PrivateRounds(_plan(level, config), Ledger(run_dir / LEDGER, read_only=True), config["run_id"])
    if state:
        rounds.load_state({key.removeprefix(OURS): value for key, value in state.items() if key.startswith(OURS)})
    if finished or not state:
        rounds.check()


@contextmanager
def private_rounds(runtime: Runtime) -> Iterator[PrivateRounds | None]:
    """Lend what makes a strategy's rounds private for clients, None under other levels; its ledger closes afterwards.

    Raises:
        PrivacyError: the ledger was edited, or another process writes it.
    """
    level, config = runtime.privacy, runtime.config
    if not isinstance(level, ClientLevel):
        yield None
        return
    with Ledger(Path(config["run_dir"]) / LEDGER) as ledger:
        yield PrivateRounds(_plan(level, config), ledger, runtime.identity.run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Balance:
    """What one client's ledger came to when it had this many bytes."""

    size: int
    epsilon: float
    releases: int
    head: str


class Books:
    """What has been spent in a run: the server's own ledger, or the clients' where this machine holds them.

    Args:
        runtime: settings.
        rounds: what makes the strategy's rounds private, None under other levels than a client's.
    """

    def __init__(self, runtime: Runtime, rounds: PrivateRounds | None) -> None:
        self._runtime = runtime
        self._rounds = rounds
        self._read: dict[Path, _Balance] = {}

    def spent(self) -> tuple[float | None, int]:
        """Return epsilon, of the client that has spent most, and the number of releases; (None, 0) where unknown.

        Deployed clients keep their ledgers to themselves.

        Raises:
            PrivacyError: a ledger was edited.
        """
        if self._rounds is not None:
            return self._rounds.spent, self._rounds.releases
        found = self._of_clients()
        if not found:
            return None, 0
        return max(one.epsilon for one in found.values()), sum(one.releases for one in found.values())

    def state(self, server_round: int) -> dict[str, StateValue]:
        """Return what a resumed run must find again: the clients' last releases, and the terms of the promise.

        Args:
            server_round: the round that is done.
        """
        heads = json.dumps({name: one.head for name, one in self._of_clients().items()})
        return {HEADS: heads, **({KEPT: json.dumps(self.terms), DONE: server_round} if self.terms else {})}

    @property
    def terms(self) -> Mapping[str, Any]:
        """What the run's promise is made of, {} without privacy."""
        return terms_of(self._runtime.privacy, self._runtime.config)

    def _of_clients(self) -> dict[str, _Balance]:
        if self._runtime.privacy is None:
            return {}
        folder = Path(self._runtime.config["run_dir"]) / "checkpoints" / "clients"
        return {path.parent.name: self._of_client(path) for path in sorted(folder.glob(f"client-*/{LEDGER}"))}

    def _of_client(self, path: Path) -> _Balance:
        size = path.stat().st_size
        if path not in self._read or self._read[path].size != size:
            ledger = Ledger(path, read_only=True)
            spent = max((ledger.epsilon(unit, self._delta) for unit in ledger.units()), default=0.0)
            self._read[path] = _Balance(size=size, epsilon=spent, releases=len(ledger.entries), head=ledger.head)
        return self._read[path]

    @property
    def _delta(self) -> float:
        level, config = self._runtime.privacy, self._runtime.config
        if isinstance(level, Local):
            return level.plan(rounds=int(config["rounds"]), num_clients=int(config["num_clients"])).delta
        return float(level.delta)


def _plan(level: ClientLevel, config: Mapping[str, Any]) -> ClientLevelRun:
    return level.plan(**{name: int(config[name]) for name in ("rounds", "cohort_size", "num_clients")})


def _local_promise(runtime: Runtime, level: Local) -> PrivacyStatement:
    """Return the statement, unless the guard would drop every honest reply for the length of its noise.

    Raises:
        ConfigError: ``guard.max_norm`` is below what noise alone comes to.
    """
    config = runtime.config
    run = level.plan(rounds=int(config["rounds"]), num_clients=int(config["num_clients"]))
    num_values = sum(value.size for value in runtime.initial.values())
    expected, cap = run.expected_norm(num_values), float(config["guard"]["max_norm"])
    if expected * 1.5 > cap:
        raise ConfigError(
            f"local privacy noises {num_values:,} values to a norm of about {expected:.4g}, and guard.max_norm={cap:g} "
            f"would drop that (set guard.max_norm={expected * 2:.2g}, a smaller privacy.clip_norm, or a method that "
            "trains less)"
        )
    return run.statement()
