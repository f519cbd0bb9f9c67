"""A node whose question got no answer goes away and comes back: what the answer held is then known to be lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedpeft.engines import flower_private_node

PULL = PullMessagesRequest(node=Node(node_id=7))
LOST = [httpx.ReadError("cut"), httpx.RemoteProtocolError("no response"), httpx.ReadTimeout("slow")]
NEVER_THERE = [httpx.ConnectError("refused"), httpx.ConnectTimeout("nobody")]


@pytest.fixture
def calls() -> list[str]:
    """What the server is asked, by name."""
    return []


@pytest.fixture
def client(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def make(*errors: Exception) -> Any:
        left = list(errors)

        def answering(name: str) -> Callable[..., Any]:
            def answer(self: object, request: Any) -> Any:
                calls.append(name)
                if name == "PullMessages" and left:
                    raise left.pop(0)
                return SimpleNamespace(node_id=7)

            return answer

        for name in ("ActivateNode", "DeactivateNode", "PullMessages"):
            monkeypatch.setattr(FleetHttpClient, name, answering(name))
        monkeypatch.setattr(flower_private_node, "_AWAY_S", 0.0)
        kind = flower_private_node._returning_client(lambda *_, **__: None, None)
        made = object.__new__(kind)
        made.ActivateNode(ActivateNodeRequest(public_key=b"k", heartbeat_interval=30))
        calls.clear()
        return made

    return make


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_an_answer_that_was_lost_makes_it_be_missed_once(client: Any, calls: list[str], error: Exception) -> None:
    made = client(error)
    with pytest.raises(type(error)):
        made.PullMessages(PULL)
    made.PullMessages(PULL)
    made.PullMessages(PULL)
    assert calls == ["PullMessages", "DeactivateNode", "ActivateNode", "PullMessages", "PullMessages"]


@pytest.mark.parametrize("error", NEVER_THERE, ids=lambda error: type(error).__name__)
def test_a_question_that_was_never_heard_lost_nothing(client: Any, calls: list[str], error: Exception) -> None:
    made = client(error)
    with pytest.raises(type(error)):
        made.PullMessages(PULL)
    made.PullMessages(PULL)
    assert calls == ["PullMessages", "PullMessages"]


def test_doubt_lasts_until_the_server_has_missed_it(
    client: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was killed: first its answer is cut, then nobody is there, then it is back."""
    made = client(LOST[0])
    with pytest.raises(httpx.ReadError):
        made.PullMessages(PULL)
    gone = [httpx.ConnectError("refused")]
    there = FleetHttpClient.DeactivateNode

    def deactivate(self: Any, request: Any) -> Any:
        if gone:
            raise gone.pop()
        return there(self, request)

    monkeypatch.setattr(FleetHttpClient, "DeactivateNode", deactivate)
    with pytest.raises(httpx.ConnectError):
        made.PullMessages(PULL)
    made.PullMessages(PULL)
    assert calls == ["PullMessages", "DeactivateNode", "ActivateNode", "PullMessages"]
