"""A decorator around any Flower Grid that keeps virtual time and counts bytes, for any Flower strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from threading import Event

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.core import wire
from fedpeft.core.errors import EngineError, printable
from fedpeft.core.events import ClientReplied, ExchangeStarted, Observer, tell
from fedpeft.core.types import ClientInfo, Cost, Work
from fedpeft.strategies.roster import Roster

ERROR_LATE = 4
LOST_CODES = frozenset({3, 4, 5, 8})
"""Flower's codes for a reply that cannot come: message or reply gone, node gone, ClientApp dead."""

Predict = Callable[[str, Work], Cost]


@dataclass(slots=True)
class VirtualClock:
    """Simulated seconds since the run began."""

    now_s: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """One message on its way."""

    message: Message
    client: ClientInfo
    kind: str
    server_round: int
    bytes_down: int


class ClockedGrid(Grid):
    """Passes messages on, predicts each exchange's time on the client's device, and drops what would come late.

    An exchange of a cohort takes as long as its slowest client in time; with a deadline and a late or lost client, it
    takes the deadline, because that is how long a server would wait. Late replies become error replies, so that every
    strategy counts them as failures.

    Args:
        inner: the engine's grid.
        roster: who the nodes are.
        predict: seconds of a piece of work on a device, by the profile's name.
        dtype: dtype of the clients' products.
        deadline_s: simulated seconds that a training exchange may take, None for no limit.
        observers: told of every exchange.
        poll_s: real seconds between two looks at the inner grid when nothing came; 0 where the inner grid waits by
            itself.
        stop: set by the engine when replies will not come any more.
    """

    def __init__(
        self,
        inner: Grid,
        *,
        roster: Roster,
        predict: Predict,
        dtype: str = "float32",
        deadline_s: float | None = None,
        observers: tuple[Observer, ...] = (),
        poll_s: float = 0.0,
        stop: Event | None = None,
    ) -> None:
        self.inner = inner
        self.clock = VirtualClock()
        self._roster = roster
        self._predict = predict
        self._dtype = dtype
        self._deadline_s = deadline_s
        self._observers = observers
        self._poll_s = poll_s
        self._stop = stop or Event()
        self._sent: dict[str, _Sent] = {}

    @property
    def run(self) -> object:  # type: ignore[override]
        """The inner grid's run."""
        return self.inner.run

    def set_run(self, run: object) -> None:
        """Pass on to the inner grid."""
        self.inner.set_run(run)  # type: ignore[arg-type]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on to the inner grid."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on to the inner grid."""
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and note what goes down; queries cost nothing."""
        batch = list(messages)
        ids = list(self.inner.push_messages(batch))
        for message_id, message in zip(ids, batch, strict=True):
            client = self._roster.get(message.metadata.dst_node_id)
            kind = message.metadata.message_type.split(".")[0]
            if client is not None and kind in ("train", "evaluate"):
                self._sent[message_id] = _Sent(
                    message=message,
                    client=replace(client, rank=wire.rank_of(message.content) or client.rank),
                    kind=kind,
                    server_round=wire.round_of(message.content),
                    bytes_down=wire.content_bytes(message.content),
                )
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, late ones as errors."""
        return [self._receive(reply) for reply in self.inner.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send a cohort its messages, wait for the replies and let the exchange's time pass."""
        before = set(self._sent)
        waiting = set(self.push_messages(messages))
        exchange = [sent for message_id, sent in self._sent.items() if message_id not in before]
        if exchange:
            first = exchange[0]
            tell(
                self._observers,
                ExchangeStarted(server_round=first.server_round, kind=first.kind, cohort_size=len(exchange)),
            )
        self._slowest_s, self._someone_missing = 0.0, False
        replies = self._wait(waiting, timeout)
        for message_id in waiting:
            self._give_up(message_id)
        if exchange:
            wait_out = self._someone_missing and self._deadline_s is not None and exchange[0].kind == "train"
            self.clock.advance(self._deadline_s if wait_out else self._slowest_s)  # type: ignore[arg-type]
        return replies

    def _wait(self, waiting: set[str], timeout: float | None) -> list[Message]:
        """Collect replies until none is missing or time is up; what stays in ``waiting`` never came."""
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        replies: list[Message] = []
        while waiting and time.monotonic() < until:
            came = list(self.pull_messages(waiting))
            waiting.difference_update(reply.metadata.reply_to_message_id for reply in came)
            replies.extend(came)
            if self._stop.is_set():
                raise EngineError("the engine stopped while replies were missing")
            if not came and self._poll_s:
                time.sleep(self._poll_s)
        return replies

    def _receive(self, reply: Message) -> Message:
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None:
            return reply
        if reply.has_error():
            self._someone_missing = True
            outcome = "lost" if reply.error.code in LOST_CODES else "error"
            reason = printable(reply.error.reason or "no reason given")
            self._tell(sent, Cost(down_s=0.0, compute_s=0.0, up_s=0.0), 0, {}, outcome, reason)
            return reply
        bytes_up, metrics = wire.content_bytes(reply.content), _metrics(reply.content)
        cost = self._predict(sent.client.device, self._work(sent, bytes_up, metrics))
        if self._deadline_s is not None and sent.kind == "train" and cost.total_s > self._deadline_s:
            self._someone_missing = True
            reason = f"{cost.total_s:.1f} simulated seconds, the deadline is {self._deadline_s:g}"
            self._tell(sent, cost, bytes_up, metrics, "late", reason)
            return Message(Error(ERROR_LATE, f"late: {reason}"), reply_to=sent.message)
        self._slowest_s = max(self._slowest_s, cost.total_s)
        self._tell(sent, cost, bytes_up, metrics, "ok", "")
        return reply

    def _give_up(self, message_id: str) -> None:
        if (sent := self._sent.pop(message_id, None)) is not None:
            self._someone_missing = True
            self._tell(
                sent, Cost(down_s=0.0, compute_s=0.0, up_s=0.0), 0, {}, "timeout", "no reply in time (round.timeout_s)"
            )

    def _work(self, sent: _Sent, bytes_up: int, metrics: dict[str, float | list[float]]) -> Work:
        prefix = "train" if sent.kind == "train" else "eval"
        return Work(
            flops=_number(metrics.get(f"{prefix}-flops")),
            bytes_down=sent.bytes_down,
            bytes_up=bytes_up,
            dtype=self._dtype,
            num_steps=int(_number(metrics.get(f"{prefix}-steps"))),
        )

    def _tell(
        self, sent: _Sent, cost: Cost, bytes_up: int, metrics: dict[str, float | list[float]], outcome: str, detail: str
    ) -> None:
        event = ClientReplied(
            server_round=sent.server_round,
            kind=sent.kind,
            client_id=sent.client.client_id,
            device=sent.client.device,
            num_examples=sent.client.num_examples,
            rank=sent.client.rank,
            bytes_down=sent.bytes_down,
            bytes_up=bytes_up,
            cost=cost,
            metrics=metrics,
            outcome=outcome,
            detail=detail,
        )
        tell(self._observers, event)


def _metrics(content: RecordDict) -> dict[str, float | list[float]]:
    """Return a reply's numbers as they are; the guard judges them later, so nothing here may trust them."""
    records = list(content.metric_records.values())
    return dict(records[0]) if records else {}  # type: ignore[arg-type]


def _number(value: object) -> float:
    """Return a client's claim as a number that arithmetic survives."""
    sound = isinstance(value, (int, float)) and 0 <= value <= wire.MAX_METRIC
    return float(value) if sound else 0.0  # type: ignore[arg-type]
