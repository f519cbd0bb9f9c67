"""A grid without engines: clients are functions from an instruction to replies, and every message is Flower's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedpeft.core import wire
from fedpeft.core.orders import Orders
from fedpeft.core.types import Tensors
from fedpeft.engines.flower_private import Run, set_identity, set_message_id

Answer = Callable[[int, Message], list[Message]]
"""From a client id and its instruction to the replies that come back: none, one, or more."""

RUN_ID = 42


class FakeGrid(Grid):
    """Delivers at once, in the order of pushing.

    Args:
        clients: client id by node id.
        answer: what clients do with a training or evaluation message.
        hello: what a node says of itself, None to answer soundly.
    """

    def __init__(
        self,
        clients: Mapping[int, int],
        answer: Answer | None = None,
        hello: Callable[[Message], Message] | None = None,
    ) -> None:
        set_identity(run_id=RUN_ID, node_id=1)
        self.clients = dict(clients)
        self.answer = answer or (lambda client_id, message: [])
        self.hello = hello or self.say_hello
        self.asked: list[Message] = []
        self._replies: dict[str, list[Message]] = {}

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN_ID)

    def set_run(self, run: Run) -> None:
        pass

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for one in sorted(message_ids) for reply in self._replies.pop(one, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def say_hello(self, message: Message) -> Message:
        client_id = self.clients[message.metadata.dst_node_id]
        content = wire.hello_reply(client_id=client_id, num_examples=10 + client_id, device="board", rank=2)
        return Message(content, reply_to=message)

    def _push(self, message: Message) -> str:
        self.asked.append(message)
        message_id = f"m{len(self.asked):05d}"
        set_message_id(message, message_id)
        if message.metadata.message_type == wire.HELLO_QUERY:
            self._replies[message_id] = [self.hello(message)]
        else:
            self._replies[message_id] = self.answer(self.clients[message.metadata.dst_node_id], message)
        return message_id


def grid_of_app(clients: Mapping[int, int], app: ClientApp) -> FakeGrid:
    """Return a grid whose clients are a real ClientApp, told by its node's config which of them it is."""
    from fedpeft.engines.grid import handle

    def answer(client_id: int, message: Message) -> list[Message]:
        node = {"partition-id": client_id}
        context = Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={})
        replies: Iterable[Message] = handle(app, (message, context))
        return list(replies)[:1]

    return FakeGrid(clients, answer)


def nodes(count: int) -> dict[int, int]:
    """Return client ids by node ids whose order says nothing of the clients."""
    return {1000 + (61 * client + 17) % 97: client for client in range(count)}


def small_global() -> Tensors:
    """Return global tensors of three shapes, float32."""
    rng = np.random.default_rng(7)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("a.lora_A", (3, 4)), ("b.lora_B", (4,)), ("c", (2, 3)))
    }


def trained(client_id: int, sent: Tensors, server_round: int = 1, orders: Orders | None = None) -> Tensors:
    """Return what an honest client makes of what it was sent: a small change, its own in each round."""
    rng = np.random.default_rng([client_id, server_round])
    keys = (orders or Orders()).returned(sent)
    return {key: (sent[key] + 0.1 * rng.normal(size=sent[key].shape)).astype(np.float32) for key in keys}


def honest_train(client_id: int, message: Message) -> RecordDict:
    """Return an honest training reply's content; a client's weight is 10 + its id."""
    tensors = wire.decode_own(message.content.array_records[wire.ARRAYS])
    read = instruction_of(message)
    orders = Orders.read(read.config)
    metrics: dict[str, float | list[float]] = {
        wire.NUM_EXAMPLES: 10 + client_id,
        "train-loss": 0.5,
        "train-flops": 1e9,
        "train-steps": 2,
    }
    if orders.probe == "layers":
        metrics["layer-scores"] = [float(1 + (client_id + layer) % 4) for layer in range(4)]
    if orders.probe == "curvature":
        metrics["layer-share"] = 0.5
    return wire.reply(read, trained(client_id, tensors, read.server_round, orders), metrics)


def honest_evaluate(client_id: int, message: Message) -> RecordDict:
    """Return an honest evaluation reply's content: accuracy 0.5 + 0.05 x client id over two groups of 10 examples."""
    right = [5.0, 5.0 + client_id]
    metrics: dict[str, float | list[float]] = {
        wire.NUM_EXAMPLES: 20,
        "eval-loss": 1.0 + client_id,
        "eval-accuracy": sum(right) / 20,
        "group-correct": right,
        "group-count": [10.0, 10.0],
    }
    return wire.reply(instruction_of(message), None, metrics)


def instruction_of(message: Message) -> wire.Instruction:
    """Return the instruction in a message, as a client reads it."""
    record = message.content.array_records[wire.ARRAYS]
    spec = {key: wire.TensorSpec(tuple(array.shape), array.dtype) for key, array in record.items()}
    return wire.read_instruction(message.content, spec, max_bytes=2**30)


def honest(client_id: int, message: Message) -> list[Message]:
    """Answer as a good client does."""
    make = honest_train if message.metadata.message_type == "train" else honest_evaluate
    return [Message(make(client_id, message), reply_to=message)]


def replaced(
    content: RecordDict, *, arrays: ArrayRecord | None = None, echo: Mapping[str, object] | None = None
) -> RecordDict:
    """Return the content with records exchanged."""
    new = RecordDict(dict(content))  # type: ignore[arg-type]
    if arrays is not None:
        new[wire.ARRAYS] = arrays
    if echo is not None:
        new[wire.ECHO] = ConfigRecord(dict(echo))  # type: ignore[arg-type]
    return new
