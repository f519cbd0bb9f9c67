"""What the live display knows of a run: pure state, folded from events, without a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.core.events import (
    ClientRejected,
    ClientReplied,
    EvaluationProgress,
    Event,
    ExchangeStarted,
    RoundFinished,
    RoundKept,
    RunFinished,
    RunStarted,
    RunStopped,
)
from fedpeft.report import numbers, outcomes
from fedpeft.report.measure import ACCURACY, Measure, measure_of

SHOWN_ROUNDS = 6


def number(record: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a record; None where it is missing, null or no number."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def epsilon(record: Mapping[str, Any]) -> float | None:
    """Return the epsilon of a record, infinite where it says ``"inf"``; None where it has none."""
    return math.inf if record.get("epsilon") == "inf" else number(record, "epsilon")


def metric(record: Mapping[str, Any], name: str) -> float | None:
    """Return a metric of a round's record."""
    inner = record.get("eval")
    return number(inner, name) if isinstance(inner, Mapping) else None


@dataclass(kw_only=True)
class Progress:
    """How far a run is. ``take`` is the only thing that changes it.

    Attributes:
        clock: returns seconds that only grow; for the time that is left.
        phase: what is going on now, for a person.
        done: finished parts of this phase, of ``total``.
        measure: what the run is measured by; accuracy until a round says otherwise.
        before: the measure of the model before training; None until known.
        dropped: replies not used so far by outcome, this round's included.
        bytes_down: bytes from server to clients so far, in training and in evaluation.
        bytes_up: bytes from clients to server so far.
        energy_j: joules of all training exchanges so far, None until known.
        epsilon: what has been spent so far, None without privacy.
        stopped: why the run ends before its last round, "" otherwise.
        last: records of the last rounds, oldest first.
        summary: the summary, once the run is over.
        seconds: what the clock's seconds are: ``simulated``, or ``measured`` on real devices.
    """

    clock: Callable[[], float]
    name: str = ""
    run_dir: str = ""
    first_round: int = 1
    num_rounds: int = 0
    server_round: int = 0
    finished: int = 0
    phase: str = "starting"
    done: int = 0
    total: int = 0
    measure: Measure = ACCURACY
    before: float | None = None
    now: float | None = None
    best: float | None = None
    best_round: int = 0
    virtual_clock_s: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    energy_j: float | None = None
    epsilon: float | None = None
    stopped: str = ""
    last: list[Mapping[str, Any]] = field(default_factory=list)
    kept: str = ""
    summary: Mapping[str, Any] | None = None
    seconds: str = "simulated"
    _started: float = 0.0
    _dropped_before: dict[str, int] = field(default_factory=dict)
    _down_before: int = 0
    _up_before: int = 0
    _energy_before: float | None = None

    def take(self, event: Event) -> None:
        """Fold one event in."""
        if isinstance(event, RunStarted):
            self.name, self.run_dir = event.name, numbers.path(event.run_dir)
            self.seconds = "measured" if event.is_real else "simulated"
            self.first_round, self.num_rounds = event.first_round, event.num_rounds
            self.finished = event.first_round - 1
            self._started = self.clock()
        elif isinstance(event, ExchangeStarted):
            self.server_round, self.done, self.total = event.server_round, 0, event.cohort_size
            self.phase = "training" if event.kind == "train" else "evaluating on clients"
        elif isinstance(event, ClientReplied):
            self._reply(event)
        elif isinstance(event, ClientRejected):
            if event.kind == "train":
                self._drop(f"rejected:{event.check}")
        elif isinstance(event, RoundKept):
            self.kept = f"round {event.server_round}: the old model stays ({event.reason})"
        elif isinstance(event, RunStopped):
            self.stopped = f"stopped before round {event.server_round}: {event.reason}"
        elif isinstance(event, EvaluationProgress):
            self.server_round, self.done, self.total, self.phase = (
                event.server_round,
                event.done,
                event.total,
                "evaluating",
            )
        elif isinstance(event, RoundFinished):
            self._round(event.server_round, event.record)
        elif isinstance(event, RunFinished):
            self.summary, self.phase = event.summary, "done"

    @property
    def surplus(self) -> int:
        """Replies so far that came when their round had enough."""
        return self.dropped.get(outcomes.SURPLUS, 0)

    @property
    def failures(self) -> dict[str, int]:
        """Replies so far that failed, by outcome: all that was dropped but the surplus."""
        return {outcome: count for outcome, count in self.dropped.items() if outcomes.is_failure(outcome)}

    def remaining_s(self) -> float | None:
        """Return the wall seconds left: this session's mean round times the rounds to go; None at first."""
        rounds = self.finished - (self.first_round - 1)
        if rounds < 1 or self.finished >= self.num_rounds:
            return None
        return (
            (self.clock() - self._started) / (rounds + self._part()) * (self.num_rounds - self.finished - self._part())
        )

    def _part(self) -> float:
        """Share of the running round that is done, as far as its training tells; below 1."""
        return 0.9 * self.done / self.total if self.phase == "training" and self.total else 0.0

    def _reply(self, event: ClientReplied) -> None:
        self.done = min(self.done + 1, max(self.total, 1))
        self.bytes_down += event.bytes_down or 0
        self.bytes_up += event.bytes_up or 0
        if event.kind == "train":
            self.energy_j = _sum(self.energy_j, event.cost.energy_j)
            if event.outcome != "ok":
                self._drop(event.outcome)

    def _drop(self, outcome: str) -> None:
        self.dropped[outcome] = self.dropped.get(outcome, 0) + 1

    def _round(self, server_round: int, record: Mapping[str, Any]) -> None:
        """Put a round's record in the place of what its events said so far."""
        self.server_round = server_round
        self.finished = max(self.finished, server_round)
        self.phase, self.done, self.total = "between rounds", 0, 0
        self._settle_counts(record)
        if isinstance(record.get("eval"), Mapping):
            self.measure = measure_of(record["eval"])
        if server_round == 0:
            self.before, self._started = metric(record, self.measure.key), self.clock()
        spent = epsilon(record)
        self.epsilon = self.epsilon if spent is None else spent
        clock = number(record, "virtual_clock_s")
        self.virtual_clock_s = self.virtual_clock_s if clock is None else clock
        value = metric(record, self.measure.key)
        if value is not None:
            self.now = value
            if self.best is None or (value != self.best and self.measure.best((value, self.best)) == value):
                self.best, self.best_round = value, server_round
        self.last = [*self.last, {"round": server_round, **record}][-SHOWN_ROUNDS:]

    def _settle_counts(self, record: Mapping[str, Any]) -> None:
        counted = record.get("dropped")
        if isinstance(counted, Mapping):
            self.dropped = dict(self._dropped_before)
            for outcome, count in counted.items():
                if count:
                    self.dropped[str(outcome)] = self.dropped.get(str(outcome), 0) + int(count)
        down, up = number(record, "bytes_down"), number(record, "bytes_up")
        if down is not None:
            self.bytes_down = self._down_before + int(down + (number(record, "eval_bytes_down") or 0))
        if up is not None:
            self.bytes_up = self._up_before + int(up + (number(record, "eval_bytes_up") or 0))
        energy = number(record, "energy_j")
        if energy is not None:
            self.energy_j = _sum(self._energy_before, energy)
        self._energy_before = self.energy_j
        self._dropped_before, self._down_before, self._up_before = dict(self.dropped), self.bytes_down, self.bytes_up


def _sum(before: float | None, more: float | None) -> float | None:
    return before if more is None else (before or 0.0) + more
