"""What a grid asks of the devices it simulates: time, costs, and what keeps a client from finishing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message

from fedpeft.core.types import ClientInfo, Cost, Work
from fedpeft.strategies.buffer import Clock


class VirtualClock(Clock):
    """Simulated seconds since the run began, and what the last training exchange took."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    def move_to(self, now_s: float) -> None:
        """Let time pass until then."""
        self.now_s = now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One message that a client works on, and its reply.

    Attributes:
        client: who, at the rank that the message orders.
        kind: ``train`` or ``evaluate``.
        server_round: the round it was sent in.
        message: what was sent.
        sent_at_s: ``time.monotonic()`` when it left.
        told: the reply's numbers, which nobody has checked; {} before there is one.
    """

    client: ClientInfo
    kind: str
    server_round: int
    message: Message
    sent_at_s: float = field(default_factory=time.monotonic)
    told: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a client cannot take a message at all: its device has too little memory.

    Attributes:
        reason: what is needed and what is there.
        needed_mb: MiB that the work would take.
    """

    reason: str
    needed_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The clients' devices, simulated or real; the defaults know of nothing that goes wrong.

    Attributes:
        cost: what an exchange took on its client's device.
        refusal: why a client cannot take a message at all, None where it can.
        leaves_after_s: seconds from now until the client is gone, infinite for never, by exchange, the virtual time
            now and the seconds that the exchange would take.
        predicted: what a real device was expected to take, None where costs are predictions themselves.
        is_real: whether seconds pass by themselves: deadlines are waited for, and wanted replies end a round at once.
    """

    cost: Callable[[Exchange, Work], Cost]
    refusal: Callable[[Exchange], Refusal | None] = lambda exchange: None
    leaves_after_s: Callable[[Exchange, float, float], float] = lambda exchange, now_s, total_s: math.inf
    predicted: Callable[[Exchange, Work], Cost | None] = lambda exchange, work: None
    is_real: bool = False


def cut_short(cost: Cost, seconds: float) -> Cost:
    """Return what an exchange has cost that ends after so many seconds: each leg as far as it came, energy in parts.

    Example:
        >>> cut_short(Cost(down_s=1.0, compute_s=4.0, up_s=5.0, energy_j=20.0), 3.0)
        Cost(down_s=1.0, compute_s=2.0, up_s=0.0, energy_j=6.0, peak_memory_mb=None)
    """
    down_s = min(cost.down_s, seconds)
    compute_s = min(cost.compute_s, seconds - down_s)
    up_s = min(cost.up_s, seconds - down_s - compute_s)
    share = (down_s + compute_s + up_s) / cost.total_s if cost.total_s else 0.0
    energy_j = None if cost.energy_j is None else cost.energy_j * share
    return replace(cost, down_s=down_s, compute_s=compute_s, up_s=up_s, energy_j=energy_j)
