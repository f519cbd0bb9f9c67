"""The only private names of Flower that fedpeft touches; a contract test pins them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "Run",
    "accepted",
    "api_error",
    "client_tasks",
    "control_client",
    "control_messages",
    "push_error",
    "run_clientapp",
    "run_superexec",
    "run_supernode",
    "set_identity",
    "set_message_id",
]

IDLE_S = 3
"""Seconds that Flower's SuperNode sleeps when the server has nothing for it."""
UNAUTHORIZED = 401
KEY_IN_USE, NODE_NOT_FOUND = 23, 24
"""Reasons for which the Control API refuses to register a device, and to unregister one."""
ONLINE, UNREGISTERED = "online", "unregistered"
HEARTBEATS_MISSED = 2
"""Heartbeats that a device may miss before it is held to be gone."""


def set_identity(*, run_id: int, node_id: int) -> None:
    """Tell Flower which run and node this process speaks for: ``Message`` refuses to be built without."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 0
    TaskIdentity.node_id = node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink does: replies refer to it."""
    message.metadata.__dict__["_message_id"] = message_id


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
    options: Sequence[str], *, poll_s: float, tell: Callable[..., None], downloaded: Callable[[float], None]
) -> None:
    """Run Flower's SuperNode with another idle poll, and tell how its connection fares.

    Args:
        options: of ``flower-supernode``.
        poll_s: seconds between two questions to a server that had nothing.
        tell: called with ``connected``, ``lost`` and ``back`` (a connection), or ``refused`` and a ``reason``: it never
            returns from that one.
        downloaded: told how many seconds a message with all that belongs to it took to come.
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
            flwr_exit=lambda code, reason="", **_: tell("refused", reason=reason),
        ),
    ):
        flower_supernode()


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


def control_client(address: str, root_certificate: bytes) -> Any:
    """Return Flower's client of a SuperLink's Control API over TLS, as ``flwr supernode`` has it without an account.

    Args:
        address: host and port.
        root_certificate: PEM of the authority that must have signed the SuperLink's certificate.
    """
    from flwr.supercore.control import ControlHttpClient

    return ControlHttpClient.from_server_address(
        address, insecure=False, root_certificates=root_certificate, interceptors=[]
    )


def control_messages() -> ModuleType:
    """Return the module of what the Control API is asked and answers."""
    from flwr.proto import control_pb2

    return control_pb2


def api_error(text: str) -> tuple[int, str] | None:
    """Return the number and the words of a refusal by a SuperLink, or None where the text is none."""
    from flwr.supercore.error import FlowerError

    error = FlowerError.from_json(text)
    return (error.code, error.message) if error else None
