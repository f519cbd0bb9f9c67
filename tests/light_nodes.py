"""Devices without training: registered keys in one process, which answer what a real SuperLink hands them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from fake_grid import honest_train
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedpeft.core import wire
from fedpeft.engines.deploy.keys import key_to_pem, make_device_key, read_device_key
from fedpeft.engines.deploy.registry import Registry
from fedpeft.engines.flower_private import set_identity, set_message_id

HEARTBEAT_S = 60.0
Answer = Callable[[int, Message], "list[Message | Parcel]"]


class MessageGoneError(Exception):
    """A message was taken back while it was being fetched."""


@dataclass(kw_only=True)
class Parcel:
    """A reply as it goes over the wire, of which each part may be spoilt.

    Attributes:
        message: its envelope.
        tree: ids of its objects.
        contents: what of them is sent.
    """

    message: Message
    tree: ObjectTree
    contents: dict[str, bytes]

    @classmethod
    def of(cls, reply: Message) -> Parcel:
        """Pack a reply as Flower does."""
        set_message_id(reply, reply.object_id)
        contents = {key: one.deflate() for key, one in get_all_nested_objects(reply).items()}
        return cls(message=reply, tree=get_object_tree(reply), contents=contents)


def honest_answer(client_id: int, message: Message) -> list[Message | Parcel]:
    """Answer as a good client does, as fast as can be."""
    if message.metadata.message_type == wire.HELLO_QUERY:
        content = wire.hello_reply(client_id=client_id, num_examples=10 + client_id, device="board", rank=2)
    else:
        content = honest_train(client_id, message)
    return [Message(content, reply_to=message)]


def register(state: Path, count: int) -> list[Path]:
    """Register so many devices at a server's state folder, as ``add-device`` does; return their keys."""
    keys = [state / "devices" / f"d{number}.key" for number in range(count)]
    keys[0].parent.mkdir(parents=True, exist_ok=True)
    for number, key in enumerate(keys):
        public = make_device_key(key, name=f"d{number}", client_id=number)
        Registry.load(state).add(f"d{number}", public)
    return keys


@dataclass(kw_only=True)
class LightNode:
    """One device.

    Attributes:
        client_id: whose key it has.
        address: of the SuperLink, or of what stands before it.
        ca: bytes of its authority's certificate.
        key: file of the private key.
        answer: from client id and message to what is sent back.
        refused: replies that the SuperLink did not take whole.
    """

    client_id: int
    address: str
    ca: bytes
    key: Path
    answer: Answer = honest_answer
    node_id: int = 0
    refused: int = 0
    answered: int = 0
    _client: Any = field(default=None, repr=False)

    def join(self) -> None:
        """Connect and be present."""
        private: Any = serialization.load_ssh_private_key(self.key.read_bytes(), None)
        self._client = FleetHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=self.ca,
            interceptors=[NodeAuthHttpInterceptor(private, private.public_key())],
        )
        pem = key_to_pem(read_device_key(self.key).public_key)
        request = ActivateNodeRequest(public_key=pem, heartbeat_interval=HEARTBEAT_S)
        self.node_id = self._client.ActivateNode(request).node_id

    def leave(self) -> None:
        # The SuperLink may have gone first.
        with suppress(httpx.HTTPError, RuntimeError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self._client._client.close()

    def beat(self) -> None:
        """Say that it is still there."""
        self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S))

    def step(self) -> bool:
        """Answer one message, if there is one."""
        found = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return False
        message = self._fetch(found.messages_list[0].metadata, found.message_object_trees[0])
        for reply in self.answer(self.client_id, message):
            self.send(reply if isinstance(reply, Parcel) else Parcel.of(reply))
        self.answered += 1
        return True

    def send(self, parcel: Parcel) -> None:
        """Send a reply, and of its objects what the SuperLink has not."""
        run_id = parcel.message.metadata.run_id
        envelope = message_to_proto(remove_content_from_message(parcel.message))
        request = PushMessagesRequest(
            node=self._node, messages_list=[envelope], message_object_trees=[parcel.tree], clientapp_runtime_list=[0.1]
        )
        accepted = self._client.PushMessages(request)
        for object_id in accepted.objects_to_push:
            if object_id in parcel.contents:
                pushed = PushObjectRequest(
                    node=self._node, run_id=run_id, object_id=object_id, session_id=accepted.session_id,
                    object_content=parcel.contents[object_id],
                )  # fmt: skip
                self.refused += not self._client.PushObject(pushed).stored

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _pull(self, run_id: int, object_id: str) -> bytes:
        request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
        # The server may still be sending it.
        while not (found := self._client.PullObject(request)).object_available:
            if not found.object_found:
                raise MessageGoneError
            time.sleep(0.05)
        return bytes(found.object_content)

    def _fetch(self, metadata: Any, tree: ObjectTree) -> Message:
        contents = {one.object_id: self._pull(metadata.run_id, one.object_id) for one in iterate_object_tree(tree)}
        confirmed = ConfirmMessageReceivedRequest(
            node=self._node, run_id=metadata.run_id, message_object_id=tree.object_id
        )
        self._client.ConfirmMessageReceived(confirmed)
        message: Any = inflate_object_from_contents(tree.object_id, contents)
        set_message_id(message, tree.object_id)
        return message  # type: ignore[no-any-return]


@contextmanager
def running(
    keys: Sequence[Path], address: str, ca: Path, answers: Mapping[int, Answer] | None = None, workers: int = 2,
    idle_s: float = 0.3,
) -> Iterator[list[LightNode]]:  # fmt: skip
    """Run devices in threads until the block is left; a thread's error is raised then.

    Args:
        keys: file by client id.
        address: of the SuperLink.
        ca: file of its authority's certificate.
        answers: by client id; the others are honest.
        workers: threads, each of which looks after its share of the devices.
        idle_s: seconds after which a device that had nothing asks again.
    """
    set_identity(run_id=1, node_id=1)
    nodes = [
        LightNode(
            client_id=number, address=address, ca=ca.read_bytes(), key=key,
            answer=(answers or {}).get(number, honest_answer),
        )
        for number, key in enumerate(keys)
    ]  # fmt: skip
    done, errors = threading.Event(), []

    def work(share: Sequence[LightNode]) -> None:
        try:
            for node in share:
                while not done.is_set() and not _joined(node):
                    done.wait(idle_s)
            looked = dict.fromkeys((node.client_id for node in share), 0.0)
            while not done.wait(0.02):
                for node in share:
                    if time.monotonic() - looked[node.client_id] > idle_s and not _step(node, done):
                        looked[node.client_id] = time.monotonic()
            for node in share:
                if node.node_id:
                    node.leave()
        except Exception as error:
            errors.append(error)

    def beat() -> None:
        # Beside the others, as in Flower's SuperNode: who is busy is there.
        while not done.wait(HEARTBEAT_S / 3):
            for node in nodes:
                with suppress(httpx.HTTPError):
                    if node.node_id:
                        node.beat()

    threads = [threading.Thread(target=beat)]
    threads += [threading.Thread(target=work, args=(nodes[part::workers],)) for part in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield nodes
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    if errors:
        raise errors[0]


def _joined(node: LightNode) -> bool:
    # A server that has just started lets its devices in a moment later.
    try:
        node.join()
    except (httpx.HTTPStatusError, httpx.TransportError):
        return False
    return True


def _step(node: LightNode, done: threading.Event) -> bool:
    try:
        return node.step()
    except (httpx.HTTPStatusError, httpx.TransportError, MessageGoneError):
        # Between two runs, after a deadline, or when the server has just ended.
        done.wait(0.2)
        return False
