"""Flower's own SuperLink without its sockets: its database and its handlers, for one ServerApp and some nodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.fleet import fleet_handlers as fleet
from flwr.superlink.servicer.runtime import runtime_handlers as runtime
from light_nodes import Parcel

from fedpeft.engines.flower_private import Run, set_identity, set_message_id


class LocalLink:
    """A SuperLink's state with one run, its ServerApp's grid, and nodes.

    Args:
        folder: of the database.
        nodes: how many are online.

    Attributes:
        grid: Flower's, which asks the handlers.
        nodes: their ids.
        state: Flower's.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        database = str(folder / "state.db")
        self.state: Any = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
        self.run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        [task] = self.state.get_tasks(run_ids=[self.run_id])
        assert self.state.claim_task(task.task_id) and self.state.activate_task(task.task_id)
        self.nodes = [
            self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key%d" % number, 60) for number in range(nodes)
        ]
        assert all(self.state.activate_node(node, 60) for node in self.nodes)
        set_identity(run_id=self.run_id, node_id=1)
        self.grid = HttpGrid(token="t")
        self.grid.set_run(Run.create_empty(self.run_id))
        self.grid._client = _Runtime(self.state, task)  # type: ignore[assignment]

    def kept(self) -> int:
        """Return how many objects and messages the database holds."""
        return int(len(self.state.object_store) + self.state.num_message_ins() + self.state.num_message_res())

    def named(self, node_id: int) -> Message | None:
        """Have a node ask for its next message; return it without content, None where there is none."""
        found = fleet.pull_messages(
            PullMessagesRequest(node=Node(node_id=node_id)), self.state, self.state.object_store
        )
        if not found.messages_list:
            return None
        self.tree = found.message_object_trees[0]
        contents = {}
        for one in iterate_object_tree(self.tree):
            request = PullObjectRequest(node=Node(node_id=node_id), run_id=self.run_id, object_id=one.object_id)
            contents[one.object_id] = fleet.pull_object(request, self.state).object_content
        message: Any = inflate_object_from_contents(self.tree.object_id, contents)
        set_message_id(message, self.tree.object_id)
        return message  # type: ignore[no-any-return]

    def confirm(self, node_id: int, message_id: str) -> None:
        """Have a node say that it has received a message."""
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=node_id), run_id=self.run_id, message_object_id=message_id
        )
        fleet.confirm_message_received(request, self.state, self.state.object_store)

    def receive(self, node_id: int) -> Message:
        """Have a node take its next message."""
        message = self.named(node_id)
        assert message is not None
        self.confirm(node_id, message.metadata.message_id)
        return message

    def announce(self, node_id: int, parcel: Parcel) -> Any:
        """Have a node begin to reply; return what the SuperLink answers."""
        request = PushMessagesRequest(
            node=Node(node_id=node_id),
            messages_list=[message_to_proto(remove_content_from_message(parcel.message))],
            message_object_trees=[parcel.tree],
        )
        return fleet.push_messages(request, self.state)

    def upload(self, node_id: int, parcel: Parcel, answer: Any) -> list[bool]:
        """Have a node send a reply's objects; return which of them were taken."""
        taken = []
        for object_id in answer.objects_to_push:
            request = PushObjectRequest(
                node=Node(node_id=node_id), run_id=self.run_id, object_id=object_id,
                object_content=parcel.contents[object_id], session_id=answer.session_id,
            )  # fmt: skip
            taken.append(fleet.push_object(request, self.state).stored)
        return taken

    def reply(self, node_id: int, parcel: Parcel) -> None:
        """Have a node reply."""
        assert all(self.upload(node_id, parcel, self.announce(node_id, parcel)))


class _Runtime:
    """The Runtime API as a ServerApp's process calls it."""

    def __init__(self, state: Any, task: Any) -> None:
        self._state, self._task = state, task

    def PushMessages(self, request: Any) -> Any:
        return runtime.push_messages(request, self._state, self._task)

    def PullMessages(self, request: Any) -> Any:
        return runtime.pull_messages(request, self._state, self._task)

    def PushObject(self, request: Any) -> Any:
        return runtime.push_object(request, self._state, self._task)

    def PullObject(self, request: Any) -> Any:
        return runtime.pull_object(request, self._state, self._task)

    def ConfirmMessageReceived(self, request: Any) -> Any:
        return runtime.confirm_message_received(request, self._state, self._task)

    def GetNodes(self, request: Any) -> Any:
        return SimpleNamespace(nodes=[])
