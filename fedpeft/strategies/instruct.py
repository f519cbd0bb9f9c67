"""Building a cohort's messages, and what each reply must look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType

from fedpeft.core import wire
from fedpeft.core.guard import Decoder, Expectation
from fedpeft.core.orders import CONTROL, PREFIX, Orders
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Letterhead:
    """What all messages of a cohort share.

    Attributes:
        kind: Flower's message type, train or evaluate.
        server_round: the round.
        identity: of run, config and base model.
        config: entries for everybody.
        ranks: who trains at which rank.
        codec: how replies are encoded.
        also: orders for a client besides the strategy's: what its device can hold.
    """

    kind: str
    server_round: int
    identity: wire.Identity
    config: ConfigRecord
    ranks: RankPlan
    codec: Decoder | None = None
    also: Callable[[ClientInfo], Orders] | None = None


def instruct(
    cohort: Sequence[ClientInfo],
    global_tensors: Tensors,
    head: Letterhead,
    client_tensors: Callable[[Tensors, ClientInfo], Tensors],
    client_config: Callable[[ClientInfo], Mapping[str, wire.ConfigValue]],
) -> tuple[list[Message], dict[int, Expectation]]:
    """Return one message for each client, and by node id what it must be answered with.

    Args:
        cohort: who is asked, with ranks.
        global_tensors: the model.
        head: what all messages share.
        client_tensors: the strategy's hook.
        client_config: the strategy's hook.
    """
    expected: dict[int, Expectation] = {}
    messages = []
    common: ArrayRecord | None = None
    for client in cohort:
        sent = client_tensors(global_tensors, client)
        if head.kind == MessageType.EVALUATE and any(key.startswith(CONTROL) for key in sent):
            sent = {key: value for key, value in sent.items() if not key.startswith(CONTROL)}
        entries: dict[str, wire.ConfigValue] = {
            **head.config,  # type: ignore[dict-item]
            **rank_entries(client, head.ranks),
            **client_config(client),
        }
        if head.also is not None:
            entries = with_orders(entries, head.also(client))
        # What all are sent alike is packed once.
        record = common if common is not None and sent is global_tensors else wire.encode(sent)
        common = record if sent is global_tensors else common
        content = wire.instruction(record, head.server_round, head.identity, entries)
        messages.append(Message(content, dst_node_id=client.node_id, message_type=head.kind))
        orders = Orders.read(entries)
        rank, scaling = orders.rank or client.rank, orders.scaling or client.scaling
        expected[client.node_id] = Expectation(
            client=replace(client, rank=rank, scaling=scaling),
            server_round=head.server_round,
            identity=head.identity,
            sent=sent,
            returned=orders.returned(sent),
            codec=head.codec,
        )
    return messages, expected


def rank_entries(client: ClientInfo, ranks: RankPlan) -> Mapping[str, wire.ConfigValue]:
    """Return what tells a client its rank: nothing where all have the same, or the method has none."""
    if not ranks.mixed or client.rank is None:
        return {}
    return Orders(rank=client.rank, scaling=client.scaling).entries()


def with_orders(entries: Mapping[str, wire.ConfigValue], also: Orders) -> dict[str, wire.ConfigValue]:
    """Return a message's config with further orders: its own come first; where both freeze something, both do."""
    own = Orders.read(entries)
    joined = replace(
        own,
        batch_size=own.batch_size or also.batch_size,
        checkpointing=own.checkpointing or also.checkpointing,
        freeze=tuple(dict.fromkeys((*own.freeze, *also.freeze))),
    )
    others = {key: value for key, value in entries.items() if not key.startswith(PREFIX)}
    return {**others, **joined.entries()}
