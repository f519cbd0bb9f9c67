"""What happens in a run, told to whoever listens: the record, the live display, trackers.

An observer is any callable that takes one event. Sources (grid, strategy, server) never ask what listeners do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.core.types import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """Something that takes seconds is being done before the first round."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPromised:
    """What the run promises about privacy, before anybody is asked: ``lines`` for people, each ``name: text``."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first round is about to begin."""

    name: str
    run_dir: str
    first_round: int
    num_rounds: int
    num_clients: int
    cohort_size: int
    is_real: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeStarted:
    """Messages of one round left for the clients; ``kind`` is ``train`` or ``evaluate``."""

    server_round: int
    kind: str
    cohort_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientReplied:
    """One client's exchange ended, well or not.

    ``outcome`` is ``ok``, ``late``, ``lost``, ``error`` or ``timeout``; a guard may still reject an ``ok`` one. In a
    simulation ``cost`` is predicted; of a real device it is measured, and ``predicted`` stands beside it.
    """

    server_round: int
    kind: str
    client_id: int
    device: str
    num_examples: int
    rank: int | None
    bytes_down: int
    bytes_up: int
    cost: Cost
    metrics: Mapping[str, float | list[float]]
    outcome: str
    detail: str = ""
    predicted: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRejected:
    """The guard refused a reply: ``check`` names the failed check."""

    server_round: int
    kind: str
    client_id: int
    check: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundKept:
    """The old global model stays after this round, and why."""

    server_round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped:
    """The run ends before this round, for a reason that is no failure: its privacy budget is spent."""

    server_round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """The good replies of a round became a new global model.

    Attributes:
        server_round: the round.
        seconds: what the strategy's ``aggregate`` took.
        product_error: relative distance of the new product from the clients' mean product, None where not measured.
    """

    server_round: int
    seconds: float
    product_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProgress:
    """Part of the server's evaluation is done."""

    server_round: int
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    """A round is on record: ``record`` is its line in ``rounds.jsonl``. Round 0 is the model before training."""

    server_round: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run ended: ``summary`` is what ``summary.json`` holds."""

    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLeftOut:
    """A device that is there takes no part: ``reason`` says who it is, where that is known, and why."""

    reason: str


Event = (
    Preparing
    | ClientLeftOut
    | PrivacyPromised
    | RunStarted
    | ExchangeStarted
    | ClientReplied
    | ClientRejected
    | RoundKept
    | RunStopped
    | Aggregated
    | EvaluationProgress
    | RoundFinished
    | RunFinished
)
Observer = Callable[[Event], None]


def tell(observers: tuple[Observer, ...], event: Event) -> None:
    """Hand an event to every observer, in order."""
    for observer in observers:
        observer(event)
