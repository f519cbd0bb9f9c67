"""The private names of Flower that a device needs: its SuperNode, its SuperExec loop, its ClientApp process.

Beside ``flower_private``; a contract test pins these too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType, SimpleNamespace
from typing import Any

from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from fedpeft.engines.flower_private import api_error, set_identity

IDLE_S = 3
"""Seconds that Flower's SuperNode sleeps when the server has nothing for it."""
UNAUTHORIZED = 401
UNKNOWN_KEY = "unknown key"
"""Reason of a refusal: the server has registered no such key."""
_AGAIN_S = 2.0


@contextmanager
def _replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Put other objects in the place of a module's names for a while."""
    before = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def client_tasks() -> set[Any]:
    """Return the kinds of tasks that a device takes: messages for its ClientApp, and nothing else."""
    from flwr.supercore.constant import TaskType

    return {TaskType.CLIENT_APP}


def accepted() -> Any:
    """Return what an executor says when it has started a task."""
    from flwr.supercore.superexec.executor import LaunchResult

    return LaunchResult.accepted()


def run_superexec(executor: Any, *, address: str, secret: bytes, poll_s: float) -> None:
    """Run Flower's SuperExec loop with another executor until the executor raises or the SuperNode cannot be reached.

    Args:
        executor: does what ``flwr.supercore.superexec.executor.Executor`` asks for.
        address: host and port of the SuperNode's Runtime API, on this machine.
        secret: shared with the SuperNode.
        poll_s: seconds between two looks.

    Raises:
        httpx.HTTPError: the SuperNode is gone.
    """
    from flwr.supercore.superexec import run_superexec as module

    def impatient() -> Any:
        invoker = patient()
        invoker.max_tries = 1
        return invoker

    patient = module.make_simple_http_retry_invoker
    os.environ[module._TASK_POLL_INTERVAL_ENV] = str(poll_s)
    with _replaced(
        module,
        get_executor=lambda *args, **kwargs: executor,
        make_simple_http_retry_invoker=impatient,
        # Signals mean what the caller makes of them.
        register_signal_handlers=lambda *args, **kwargs: None,
    ):
        module.run_superexec(address, insecure=True, superexec_auth_secret=secret)


def run_clientapp(
    *, address: str, token: str, app: ClientApp, pulled: Callable[[bytes], None], pushed: Callable[[], None]
) -> None:
    """Answer one task with Flower's ClientApp process, by our app: what the server sent as code is dropped unread.

    Args:
        address: host and port of the SuperNode's Runtime API.
        token: the task's.
        app: answers the message.
        pulled: told the message without its content as soon as it is known.
        pushed: told when the reply is with the SuperNode.

    Raises:
        SystemExit: always; the code is 0 when the app has answered.
    """
    from flwr.supercore.exit import exit_handler
    from flwr.supernode.runtime import run_clientapp as module

    class Client(module.RuntimeHttpClient):
        def PullMessages(self, request: Any) -> Any:
            found = super().PullMessages(request)
            for message in found.messages_list:
                pulled(message.SerializeToString())
            return found

    def push(*args: Any) -> None:
        push_message(*args)
        pushed()

    push_message = module.push_message
    # A forked process would otherwise run its parent's.
    exit_handler.registered_exit_handlers.clear()
    with _replaced(
        module,
        RuntimeHttpClient=Client,
        push_message=push,
        install_from_fab=lambda *args, **kwargs: None,
        get_load_client_app_fn=lambda **kwargs: lambda *args: app,
    ):
        module.run_clientapp(address, token, insecure=True, runtime_dependency_install=False)


def push_error(*, address: str, token: str, pulled: bytes | None, code: int, reason: str) -> None:
    """Answer a task with an error in the place of a process that died over it.

    Args:
        address: host and port of the SuperNode's Runtime API.
        token: the task's.
        pulled: the message, as `run_clientapp` told it; None if it died before.
        code: of the error.
        reason: of the error.

    Raises:
        httpx.HTTPError: the SuperNode does not take it.
        IndexError: there is no message to answer.
    """
    from flwr.common.constant import SubStatus
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.supernode.runtime import run_clientapp as module

    invoker = module.make_simple_http_retry_invoker()
    invoker.max_tries = 3
    client = module.RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            module.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            module.RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=invoker,
    )
    if pulled is None:
        pulled = client.PullMessages(module.PullAppMessagesRequest()).messages_list[0].SerializeToString()
    message = message_from_proto(ProtoMessage.FromString(pulled))
    node_id, run_id = message.metadata.dst_node_id, message.metadata.run_id
    set_identity(run_id=run_id, node_id=node_id)
    reply = Message(Error(code, reason), reply_to=message)
    module.push_message(client, reply, SimpleNamespace(node_id=node_id, run_id=run_id))
    module.push_task_output(client, None, SubStatus.FAILED, reason)
    client.close()


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
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    connect, pull = start_client_internal._init_connection, start_client_internal._pull_and_store_message

    @contextmanager
    def telling(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with connect(*args, **kwargs) as connection:
            tell("connected", node_id=connection[0])
            yield connection

    def timed(**parts: Any) -> int | None:
        began = time.monotonic()
        found: int | None = pull(**parts)
        if found is not None:
            downloaded(time.monotonic() - began)
        return found

    def sleep(seconds: float) -> None:
        time.sleep(poll_s if seconds == IDLE_S else seconds)

    make_invoker = fleet_http_connection.make_simple_http_retry_invoker
    sys.argv = ["flower-supernode", *options]
    with (
        _replaced(
            start_client_internal,
            _init_connection=telling,
            _pull_and_store_message=timed,
            time=SimpleNamespace(sleep=sleep),
        ),
        _replaced(
            fleet_http_connection,
            make_simple_http_retry_invoker=lambda: _telling_invoker(make_invoker(), tell),
            FleetHttpClient=_returning_client(tell, last_id),
            flwr_exit=lambda code, reason="", **_: tell("refused", reason=reason),
        ),
    ):
        flower_supernode()


def _returning_client(tell: Callable[..., None], last_id: int | None) -> type:
    """Return Flower's client of a server, which can tell a key that is unknown from one that is still held present."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
    from flwr.supercore.error import ApiErrorCode
    from flwr.supernode.fleet_http_client import FleetHttpClient

    def code(error: Exception) -> int | None:
        response = getattr(error, "response", None)
        found = None if response is None else api_error(response.text)
        return found[0] if found else None

    class Client(FleetHttpClient):
        def ActivateNode(self, request: Any) -> Any:
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
