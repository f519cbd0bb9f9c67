"""A decorator around any Flower Grid that keeps virtual time and counts bytes, for any Flower strategy."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from threading import Event

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.core import wire
from fedpeft.core.errors import EngineError, printable
from fedpeft.core.events import ClientReplied, ExchangeStarted, Observer, tell
from fedpeft.core.types import Cost, Work
from fedpeft.server.figures import number
from fedpeft.server.passing_grid import PassingGrid
from fedpeft.server.world import Exchange, Refusal, VirtualClock, World, cut_short
from fedpeft.strategies.roster import Roster

ERROR_DROPPED = 4
"""Flower's code for a reply that is not to be had: what the simulated devices do to a client."""
SAID = {wire.ERROR_BUDGET: "budget"}
"""Codes of our own clients, who say why there is no reply from them."""
NO_COST = Cost(down_s=0.0, compute_s=0.0, up_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """One message on its way."""

    exchange: Exchange
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrived:
    """One reply that came in time, and what it took."""

    sent: _Sent
    reply: Message
    cost: Cost
    bytes_up: int
    metrics: dict[str, float | list[float]]
    predicted: Cost | None


class ClockedGrid(PassingGrid):
    """Passes messages on, predicts each exchange's time on the client's device, and drops what would not come.

    A message for a client whose device cannot hold the work never leaves (``memory``). A client that becomes
    unavailable before its reply is there is gone (``left``), one that takes longer than the deadline is ``late``. All
    of them become error replies, so that every strategy counts them as failures.

    An exchange of a cohort takes until its last reply is there and its last leaving client is gone; with a deadline and
    a client that is missing it takes the deadline, because that is how long a server would wait. With ``wanted`` it
    ends when that many replies are there, and later ones are ``surplus``.

    Args:
        inner: the engine's grid.
        roster: who the nodes are.
        world: the clients' devices.
        dtype: dtype of the clients' products.
        deadline_s: simulated seconds that a training exchange may take, None for no limit.
        wanted: replies that a training exchange waits for, None for all.
        keeps_time: whether the clock moves with training exchanges; False where the strategy moves it.
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
        world: World,
        dtype: str = "float32",
        deadline_s: float | None = None,
        wanted: int | None = None,
        keeps_time: bool = True,
        observers: tuple[Observer, ...] = (),
        poll_s: float = 0.0,
        stop: Event | None = None,
    ) -> None:
        super().__init__(inner)
        self.clock = VirtualClock()
        self._roster = roster
        self._world = world
        self._dtype = dtype
        self._deadline_s = deadline_s
        self._wanted = wanted
        self._keeps_time = keeps_time
        self._observers = observers
        self._poll_s = poll_s
        self._stop = stop or Event()
        self._sent: dict[str, _Sent] = {}
        self._refused: dict[str, Message] = {}
        self._arrived: list[_Arrived] = []
        self._slowest_s = 0.0
        self._someone_missing = False

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and note what goes down; queries cost nothing."""
        batch = list(messages)
        exchanges = [self._exchange(message) for message in batch]
        refusals = [self._world.refusal(exchange) if exchange else None for exchange in exchanges]
        sent_ids = iter(self.inner.push_messages([m for m, why in zip(batch, refusals, strict=True) if not why]))
        ids = []
        for message, exchange, why in zip(batch, exchanges, refusals, strict=True):
            message_id = f"refused-{message.metadata.dst_node_id}-{id(message)}" if why else next(sent_ids)
            ids.append(message_id)
            if exchange is not None:
                size = 0 if why else wire.content_bytes(message.content)
                self._sent[message_id] = _Sent(exchange=exchange, bytes_down=size)
            if why and exchange is not None:
                self._refused[message_id] = self._refuse(self._sent.pop(message_id), why)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, those that the simulated devices drop as errors."""
        wanted = list(message_ids)
        # The inner grid never saw what was refused, and Flower's own fails on ids that it does not know.
        replies = self.inner.pull_messages([one for one in wanted if one not in self._refused])
        refused = [self._refused.pop(one) for one in wanted if one in self._refused]
        return refused + [self._receive(reply) for reply in replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send a cohort its messages, wait for the replies and let the exchange's time pass."""
        batch = list(messages)
        self._slowest_s, self._someone_missing, self._arrived = 0.0, False, []
        first = next((one for message in batch if (one := self._exchange(message)) is not None), None)
        if first is not None:
            started = ExchangeStarted(server_round=first.server_round, kind=first.kind, cohort_size=len(batch))
            tell(self._observers, started)
        if self._world.is_real and self._deadline_s is not None and first is not None and first.kind == "train":
            timeout = min(self._deadline_s, timeout or self._deadline_s)
        waiting = {message_id: None for message_id in self.push_messages(batch)}
        replies = self._wait(waiting, timeout)
        for message_id in waiting:
            self._give_up(message_id)
        if first is not None and first.kind == "train":
            self.clock.durations = {one.sent.exchange.client.client_id: one.cost.total_s for one in self._arrived}
            replies = self._close(replies)
        if first is not None:
            wait_out = self._someone_missing and self._deadline_s is not None and first.kind == "train"
            self.clock.waited_s = self._deadline_s if wait_out else self._slowest_s  # type: ignore[assignment]
            self.clock.advance(self.clock.waited_s if self._keeps_time or first.kind != "train" else 0.0)
        return replies

    def _exchange(self, message: Message) -> Exchange | None:
        """Return what a message asks of which client, None for queries and unknown nodes."""
        client = self._roster.get(message.metadata.dst_node_id)
        kind = message.metadata.message_type.split(".")[0]
        if client is None or kind not in ("train", "evaluate"):
            return None
        client = replace(client, rank=wire.rank_of(message.content) or client.rank)
        return Exchange(client=client, kind=kind, server_round=wire.round_of(message.content), message=message)

    def _wait(self, waiting: dict[str, None], timeout: float | None) -> list[Message]:
        """Collect replies until none is missing or time is up; what stays in ``waiting`` never came."""
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        replies: list[Message] = []
        while waiting and time.monotonic() < until:
            refused = [one for one in waiting if one in self._refused]
            came = list(self.pull_messages(waiting))
            for message_id in refused + [reply.metadata.reply_to_message_id for reply in came]:
                waiting.pop(message_id, None)
            replies.extend(came)
            if self._stop.is_set():
                raise EngineError("the engine stopped while replies were missing")
            if self._world.is_real and self._wanted is not None and len(self._arrived) >= self._wanted:
                break
            if not came and self._poll_s:
                time.sleep(self._poll_s)
        return replies

    def _receive(self, reply: Message) -> Message:
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None:
            return reply
        exchange = sent.exchange
        if reply.has_error():
            outcome = "lost" if reply.error.code in wire.LOST_CODES else SAID.get(reply.error.code, "error")
            # Who says that its budget is spent has answered.
            self._someone_missing = self._someone_missing or outcome not in SAID.values()
            self._tell(sent, outcome, printable(reply.error.reason or "no reason given"))
            return reply
        bytes_up, metrics = wire.content_bytes(reply.content), _metrics(reply.content)
        work = self._work(sent, bytes_up, metrics)
        cost = self._world.cost(replace(exchange, told=metrics), work)
        predicted = self._world.predicted(exchange, work)
        arrived = _Arrived(sent=sent, reply=reply, cost=cost, bytes_up=bytes_up, metrics=metrics, predicted=predicted)
        left_s = self._world.leaves_after_s(exchange, self.clock.now_s, cost.total_s)
        if left_s < cost.total_s:
            # Its connection ends when it goes; without a deadline the server waits no longer than that.
            self._slowest_s = max(self._slowest_s, left_s)
            reason = f"gone after {left_s:.1f} of {cost.total_s:.1f} simulated seconds"
            return self._drop(replace(arrived, cost=cut_short(cost, left_s), bytes_up=0), "left", reason)
        if self._deadline_s is not None and exchange.kind == "train" and cost.total_s > self._deadline_s:
            reason = f"{cost.total_s:.1f} simulated seconds, the deadline is {self._deadline_s:g}"
            return self._drop(arrived, "late", reason)
        self._arrived.append(arrived)
        if self._wanted is None or exchange.kind != "train":
            self._slowest_s = max(self._slowest_s, cost.total_s)
            self._tell(sent, "ok", "", arrived)
        return reply

    def _close(self, replies: list[Message]) -> list[Message]:
        """End a training exchange when the wanted replies are there; those that come later are not waited for."""
        if self._wanted is None:
            return replies
        # Equal times are settled by client id, so that the order of real arrival decides nothing.
        order = sorted(self._arrived, key=lambda one: (one.cost.total_s, one.sent.exchange.client.client_id))
        kept, surplus = order[: self._wanted], order[self._wanted :]
        slowest_s = max((one.cost.total_s for one in kept), default=0.0)
        self._slowest_s = max(self._slowest_s, slowest_s)
        if len(kept) == self._wanted:
            self._slowest_s, self._someone_missing = slowest_s, False
        for one in kept:
            self._tell(one.sent, "ok", "", one)
        reason = f"the round had its {self._wanted} replies after {self._slowest_s:.1f} simulated seconds"
        dropped = {id(one.reply): self._drop(one, "surplus", reason, missing=False) for one in surplus}
        return [dropped.get(id(reply), reply) for reply in replies]

    def _drop(self, arrived: _Arrived, outcome: str, reason: str, *, missing: bool = True) -> Message:
        self._someone_missing = self._someone_missing or missing
        self._tell(arrived.sent, outcome, reason, arrived)
        return Message(Error(ERROR_DROPPED, f"{outcome}: {reason}"), reply_to=arrived.sent.exchange.message)

    def _refuse(self, sent: _Sent, refusal: Refusal) -> Message:
        cost = replace(NO_COST, peak_memory_mb=refusal.needed_mb)
        self._tell(sent, "memory", refusal.reason, cost=cost)
        return Message(Error(ERROR_DROPPED, f"memory: {refusal.reason}"), reply_to=sent.exchange.message)

    def _give_up(self, message_id: str) -> None:
        if (sent := self._sent.pop(message_id, None)) is not None:
            self._someone_missing = True
            late = self._world.is_real and self._deadline_s is not None and sent.exchange.kind == "train"
            setting = "round.deadline_s" if late else "round.timeout_s"
            self._tell(sent, "late" if late else "timeout", f"no reply in time ({setting})")

    def _work(self, sent: _Sent, bytes_up: int, metrics: dict[str, float | list[float]]) -> Work:
        prefix = "train" if sent.exchange.kind == "train" else "eval"
        return Work(
            flops=max(0.0, number(metrics.get(f"{prefix}-flops"))),
            bytes_down=sent.bytes_down,
            bytes_up=bytes_up,
            dtype=self._dtype,
            num_steps=max(0, int(number(metrics.get(f"{prefix}-steps")))),
        )

    def _tell(
        self, sent: _Sent, outcome: str, detail: str, arrived: _Arrived | None = None, cost: Cost = NO_COST
    ) -> None:
        client = sent.exchange.client
        event = ClientReplied(
            server_round=sent.exchange.server_round,
            kind=sent.exchange.kind,
            client_id=client.client_id,
            device=client.device,
            num_examples=client.num_examples,
            rank=client.rank,
            bytes_down=sent.bytes_down,
            bytes_up=arrived.bytes_up if arrived else 0,
            cost=arrived.cost if arrived else cost,
            metrics=arrived.metrics if arrived else {},
            outcome=outcome,
            detail=detail,
            predicted=arrived.predicted if arrived else None,
        )
        tell(self._observers, event)


def _metrics(content: RecordDict) -> dict[str, float | list[float]]:
    """Return a reply's numbers as they are; the guard judges them later, so nothing here may trust them."""
    records = list(content.metric_records.values())
    return dict(records[0]) if records else {}  # type: ignore[arg-type]
