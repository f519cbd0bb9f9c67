"""The private names of Flower that a device's SuperNode needs.

Beside ``flower_private``; a contract test pins these too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from fedpeft.engines.flower_private import api_error
from fedpeft.engines.flower_private_device import replaced

IDLE_S = 3
"""Seconds that Flower's SuperNode sleeps when the server has nothing for it."""
UNAUTHORIZED = 401
HEARTBEAT_S = 20.0
"""Seconds that a heartbeat's answer may take: on a slow link it waits behind a download."""
UNKNOWN_KEY = "unknown key"
"""Reason of a refusal: the server has registered no such key."""
_AGAIN_S = 2.0
_AWAY_S = 3.0


def run_supernode(
    options: Sequence[str],
    *,
    poll_s: float,
    tell: Callable[..., None],
    downloaded: Callable[[float], None],
    last_id: int | None = None,
) -> None:
    """Run Flower's SuperNode with another idle poll, and tell how its connection fares.

    Args:
        options: of ``flower-supernode``.
        poll_s: seconds between two questions to a server that had nothing.
        tell: called with ``connected``, ``lost`` and ``back`` (a connection), or ``refused`` and a ``reason``: it never
            returns from that one.
        downloaded: told how many seconds a message with all that belongs to it took to come.
        last_id: what the server called this node when it was last there. A node that died without a word is taken for
            present for up to a minute; knowing this it can say that it was not, and come back at once.
    """
    from flwr.supernode import fleet_http_client, fleet_http_connection, start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    make_invoker = fleet_http_connection.make_simple_http_retry_invoker
    sys.argv = ["flower-supernode", *options]
    with (
        replaced(
            start_client_internal,
            _init_connection=_telling_connection(start_client_internal._init_connection, tell),
            _pull_and_store_message=_timed(start_client_internal._pull_and_store_message, downloaded),
            pull_objects=_pull_or_fail,
            time=SimpleNamespace(sleep=lambda seconds: time.sleep(poll_s if seconds == IDLE_S else seconds)),
        ),
        replaced(
            fleet_http_connection,
            make_simple_http_retry_invoker=lambda: _telling_invoker(make_invoker(), tell),
            FleetHttpClient=_returning_client(tell, last_id),
            flwr_exit=lambda code, reason="", **_: tell("refused", reason=reason),
        ),
        replaced(fleet_http_client, HEARTBEAT_CALL_TIMEOUT=HEARTBEAT_S),
    ):
        flower_supernode()


def _telling_connection(connect: Callable[..., Any], tell: Callable[..., None]) -> Callable[..., Any]:
    @contextmanager
    def telling(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with connect(*args, **kwargs) as connection:
            tell("connected", node_id=connection[0])
            yield connection

    return telling


def _timed(pull: Callable[..., int | None], downloaded: Callable[[float], None]) -> Callable[..., int | None]:
    def timed(**parts: Any) -> int | None:
        began = time.monotonic()
        found = pull(**parts)
        if found is not None:
            downloaded(time.monotonic() - began)
        return found

    return timed


def _pull_or_fail(*args: Any, **kwargs: Any) -> dict[str, bytes]:
    """Pull the parts of a message; a run that has ended meanwhile is a failure like any other.

    Flower would leave the message half there, and who answers messages would wait for the rest of it.
    """
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
    from flwr.supercore.run import RunNotRunningException

    try:
        return pull_objects(*args, **kwargs)
    except RunNotRunningException as error:
        raise ObjectPullError("", "its run has ended") from error


def _returning_client(tell: Callable[..., None], last_id: int | None) -> type:
    """Return Flower's client of a server, which can tell a key that is unknown from one that is still held present."""
    import httpx
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
    from flwr.supercore.error import ApiErrorCode
    from flwr.supernode.fleet_http_client import FleetHttpClient

    def code(error: Exception) -> int | None:
        response = getattr(error, "response", None)
        found = None if response is None else api_error(response.text)
        return found[0] if found else None

    class Client(FleetHttpClient):
        activation: Any = None
        in_doubt = False

        def PullMessages(self, request: Any) -> Any:
            if self.in_doubt:
                self._be_missed(request.node.node_id)
            try:
                return super().PullMessages(request)
            except httpx.TransportError as error:
                self.in_doubt = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                raise

        def _be_missed(self, node_id: int) -> None:
            # An answer that was lost on its way may have held a message, which counts as delivered: the server would
            # wait for its reply until it sees this node gone.
            self.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
            time.sleep(_AWAY_S)
            super().ActivateNode(self.activation)
            self.in_doubt = False

        def ActivateNode(self, request: Any) -> Any:
            self.activation = request
            while True:
                try:
                    return super().ActivateNode(request)
                except Exception as error:
                    if code(error) != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                        raise
                if not self._is_known(request):
                    tell("refused", reason=UNKNOWN_KEY)
                if last_id is not None:
                    with suppress(Exception):
                        self.DeactivateNode(DeactivateNodeRequest(node_id=last_id))
                        # What it had in hand is lost: who waits for that must see it gone before it is back.
                        time.sleep(_AWAY_S)
                        return super().ActivateNode(request)
                time.sleep(_AGAIN_S)

        def _is_known(self, request: Any) -> bool:
            # The key is looked up before the interval is found to be none.
            try:
                super().ActivateNode(ActivateNodeRequest(public_key=request.public_key, heartbeat_interval=0))
            except Exception as error:
                return code(error) == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
            return True

    return Client


def _telling_invoker(invoker: Any, tell: Callable[..., None]) -> Any:
    """Have Flower's retries tell of a connection that is lost, back, or refused."""
    on_backoff, on_success, give_up = invoker.on_backoff, invoker.on_success, invoker.should_giveup
    lost = False

    def backoff(state: Any) -> None:
        nonlocal lost
        on_backoff(state)
        if not lost:
            tell("lost", reason=str(state.exception))
        lost = True

    def success(state: Any) -> None:
        nonlocal lost
        on_success(state)
        if lost:
            tell("back")
        lost = False

    def should_giveup(error: Exception) -> bool:
        response = getattr(error, "response", None)
        if response is not None and response.status_code == UNAUTHORIZED:
            tell("refused", reason=str(UNAUTHORIZED), date=response.headers.get("date", ""))
        return bool(give_up(error))

    invoker.on_backoff, invoker.on_success, invoker.should_giveup = backoff, success, should_giveup
    return invoker
