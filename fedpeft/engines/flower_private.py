"""The only private names of Flower that fedpeft touches; a contract test pins them."""

from __future__ import annotations

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "set_identity", "set_message_id"]


def set_identity(*, run_id: int, node_id: int) -> None:
    """Tell Flower which run and node this process speaks for: ``Message`` refuses to be built without."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 0
    TaskIdentity.node_id = node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink does: replies refer to it."""
    message.metadata.__dict__["_message_id"] = message_id
