"""The guard between the network and the sum: nothing a client sends is used before it passed every check.

Stock Flower strategies can be stopped or poisoned by one reply (a NaN, an extra key, a broadcastable shape, a huge
weight). Here a bad reply costs its sender its place in the round, is named, and changes nothing else. The checks, in
order:

1. records and keys: one ArrayRecord, one MetricRecord, one echo; exactly the expected tensor names
2. canonical order: tensors are re-sorted by name before anything is computed
3. header: the npy header is parsed by ``core/wire`` before any value is loaded; dtype, shape and length must match it
4. size cap on the bytes of all arrays
5. finite values
6. norm cap: the change's L2 norm, absolute and against the median of the round
7. weight and metrics: a whole number of examples in range; known, finite, bounded metrics
8. round, run, config and base model are echoed as they were sent
9. one reply a client, from a client that was asked
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message

from fedpeft.core import wire
from fedpeft.core.errors import WireError, printable
from fedpeft.core.metrics import read_evaluation, read_layer_scores, read_metrics
from fedpeft.core.tensors import all_finite, norm, specs, subtract
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors, TensorSpec

Evaluation = dict[str, float | list[float]]
Judged = TypeVar("Judged")


class Decoder(Protocol):
    """What the guard needs of a codec."""

    @property
    def lossless(self) -> bool:
        """Whether the tensors themselves travel, not their change."""
        ...

    def encoded_spec(self, spec: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
        """Return what travels for tensors of these shapes."""
        ...

    def decode(self, encoded: Tensors, spec: Mapping[str, TensorSpec]) -> Tensors:
        """Return the changes that were encoded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What one client was sent, and so what its reply must look like.

    Attributes:
        client: who was asked.
        server_round: the round.
        identity: of run, config and base model.
        sent: the tensors that went down.
        returned: names of those that must come back, None for all.
        codec: how the reply's tensors are encoded, None where they come as they are.
    """

    client: ClientInfo
    server_round: int
    identity: wire.Identity
    sent: Tensors
    returned: Sequence[str] | None = None
    codec: Decoder | None = None

    @property
    def origin(self) -> Tensors:
        """What the returned tensors were before the client trained."""
        return self.sent if self.returned is None else {key: self.sent[key] for key in self.returned}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A reply that was dropped; ``client_id`` is None for a node that was not asked."""

    client_id: int | None
    node_id: int
    check: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted updates by client id, and who was dropped and why."""

    accepted: list[ClientUpdate] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateGuard:
    """Checks replies against what was sent.

    Args:
        max_bytes: cap on the bytes of one reply's arrays.
        max_norm: cap on the L2 norm of one client's change.
        norm_factor: a change longer than this many times the round's median is dropped; at least four replies are
            needed for a median to mean anything.
        max_examples: cap on ``num-examples``.
    """

    max_bytes: int = 2**30
    max_norm: float = 1000.0
    norm_factor: float = 10.0
    max_examples: int = 10_000_000

    def inspect(self, replies: Iterable[Message], expected: Mapping[int, Expectation]) -> Verdict:
        """Judge the replies of a training round; error replies are passed over, they carry nothing.

        Args:
            replies: messages in any order.
            expected: what was sent, by node id.

        Returns:
            A verdict that does not depend on the order of the replies.
        """
        judged, rejected = _judge(replies, expected, self._checked_update)
        rejected |= self._outliers(judged)
        accepted = sorted((u for n, (u, _) in judged.items() if n not in rejected), key=lambda u: u.client.client_id)
        return Verdict(accepted, sorted(rejected.values(), key=lambda r: r.node_id))

    def inspect_evaluations(
        self, replies: Iterable[Message], expected: Mapping[int, Expectation]
    ) -> tuple[dict[int, Evaluation], list[Rejection]]:
        """Judge the replies of an evaluation likewise.

        Returns:
            The metrics of each good reply by client id, and who was dropped and why.
        """
        judged, rejected = _judge(replies, expected, self._checked_evaluation)
        rejected |= _odd_groups(judged, expected)
        good = {expected[n].client.client_id: metrics for n, metrics in judged.items() if n not in rejected}
        return dict(sorted(good.items())), sorted(rejected.values(), key=lambda r: r.node_id)

    def _checked_evaluation(self, reply: Message, expectation: Expectation) -> Evaluation:
        if reply.content.array_records:
            raise WireError("records", "an evaluation reply carries no arrays")
        wire.check_echo(reply.content, expectation.server_round, expectation.identity)
        return read_evaluation(reply.content, self.max_examples)

    def _checked_update(self, reply: Message, expectation: Expectation) -> tuple[ClientUpdate, float]:
        content = reply.content
        if len(content.array_records) != 1:
            raise WireError("records", f"expected one ArrayRecord, got {len(content.array_records)}")
        wire.check_echo(content, expectation.server_round, expectation.identity)
        metrics = read_metrics(content, self.max_examples)
        origin = expectation.origin
        tensors = self._tensors(next(iter(content.array_records.values())), origin, expectation.codec)
        change = norm(subtract(tensors, origin))
        if not change <= self.max_norm:
            raise WireError("norm", f"the change has norm {change:.4g}, at most {self.max_norm:.4g} is taken")
        num_examples = int(metrics[wire.NUM_EXAMPLES])
        update = ClientUpdate(
            client=expectation.client,
            tensors=tensors,
            num_examples=num_examples,
            metrics=metrics,
            sent=expectation.sent,
            layer_scores=read_layer_scores(content),
        )
        return update, change

    def _tensors(self, record: ArrayRecord, origin: Tensors, codec: Decoder | None) -> Tensors:
        """Return a reply's tensors, checked and decoded."""
        spec = specs(origin)
        if codec is None:
            return wire.decode(record, spec, max_bytes=self.max_bytes)
        tensors = reconstruct(codec, origin, wire.decode(record, codec.encoded_spec(spec), max_bytes=self.max_bytes))
        for value in tensors.values():
            value.setflags(write=False)
        return tensors

    def _outliers(self, judged: Mapping[int, tuple[ClientUpdate, float]]) -> dict[int, Rejection]:
        """Drop changes that are far longer than the round's median."""
        if len(judged) < 4:
            return {}
        cap = self.norm_factor * float(np.median([change for _, change in judged.values()]))
        return {
            node_id: Rejection(
                client_id=update.client.client_id,
                node_id=node_id,
                check="norm",
                reason=f"the change has norm {change:.4g}, over {self.norm_factor:g} x the round's median ({cap:.4g})",
            )
            for node_id, (update, change) in judged.items()
            if change > cap > 0
        }


def reconstruct(codec: Decoder, sent: Mapping[str, np.ndarray], encoded: Tensors) -> Tensors:
    """Return a client's tensors as the server knows them: ``sent + decode(encoded)``, in float32.

    Args:
        codec: the client's.
        sent: what this client was sent of what it returns.
        encoded: foreign parts.

    Raises:
        WireError: as the codec's ``decode``; check ``finite`` also where the sum overflows.
    """
    decoded = codec.decode(encoded, specs(sent))
    if codec.lossless:
        return decoded
    with np.errstate(over="ignore"):
        tensors = {key: np.asarray(sent[key] + decoded[key]) for key in decoded}
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise WireError("finite", f"{key} overflows when the change is added")
    return tensors


def _judge(
    replies: Iterable[Message], expected: Mapping[int, Expectation], check: Callable[[Message, Expectation], Judged]
) -> tuple[dict[int, Judged], dict[int, Rejection]]:
    """Return what ``check`` makes of each node's one reply, and the rejections, by node id."""
    contents = [reply for reply in replies if not reply.has_error()]
    counts = Counter(reply.metadata.src_node_id for reply in contents)
    judged: dict[int, Judged] = {}
    rejected: dict[int, Rejection] = {}
    for reply in contents:
        node_id = reply.metadata.src_node_id
        expectation = expected.get(node_id)
        try:
            if expectation is None:
                raise WireError("node", f"node {node_id} was not asked in this round")
            if counts[node_id] > 1:
                raise WireError("duplicate", f"{counts[node_id]} replies in one round, expected one")
            judged[node_id] = check(reply, expectation)
        except Exception as error:
            # Whatever bytes can provoke inside a library must cost the sender its place, never the round.
            failure = (
                error if isinstance(error, WireError) else WireError("malformed", f"{type(error).__name__}: {error}")
            )
            client_id = expectation.client.client_id if expectation else None
            rejected[node_id] = Rejection(
                client_id=client_id, node_id=node_id, check=failure.check, reason=printable(failure.reason)
            )
    return judged, rejected


def _odd_groups(judged: Mapping[int, Evaluation], expected: Mapping[int, Expectation]) -> dict[int, Rejection]:
    """Drop evaluations that count another number of groups than most do: sums by group need one number."""
    lengths = {n: len(metrics.get("group-count", [])) for n, metrics in judged.items()}  # type: ignore[arg-type]
    # Among equally frequent numbers the smaller one, so that the order of replies does not matter.
    usual = max(sorted(set(lengths.values())), key=list(lengths.values()).count, default=0)
    return {
        n: Rejection(
            client_id=expected[n].client.client_id,
            node_id=n,
            check="metrics",
            reason=f"{length} groups, most clients count {usual}",
        )
        for n, length in lengths.items()
        if length != usual
    }


def check_aggregate(new: Tensors, old: Tensors) -> None:
    """Refuse a new global model that is not finite or has another form than the old one.

    Raises:
        WireError: check ``aggregate``.
    """
    if not isinstance(new, Mapping) or not all(isinstance(value, np.ndarray) for value in new.values()):
        raise WireError("aggregate", f"aggregate must return arrays by name, got {printable(repr(new), 60)}")
    if changed := sorted(set(new) ^ set(old), key=str):
        raise WireError("aggregate", f"the aggregate has other tensors than the model, first {changed[0]!r}")
    before, after = specs(old), specs(new)
    for key, one in after.items():
        if one != before[key]:
            raise WireError(
                "aggregate",
                f"{key} became {one.dtype} {one.shape}, it must stay {before[key].dtype} {before[key].shape}",
            )
    if not all_finite(new):
        raise WireError("aggregate", "the aggregate holds NaN or infinity")
