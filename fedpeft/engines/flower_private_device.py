"""The private names of Flower that a device's executor needs: the SuperExec loop and the ClientApp process.

Beside ``flower_private``; a contract test pins these too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from flwr.app import Context, Error, Message, RecordDict

from fedpeft.engines.flower_private import set_identity
from fedpeft.engines.flower_private_server import fit_chunks

App = Callable[[Message, Context], Message]
"""What answers messages: a ClientApp, or a function around one."""


@contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
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
    with replaced(
        module,
        get_executor=lambda *args, **kwargs: executor,
        make_simple_http_retry_invoker=impatient,
        # Signals mean what the caller makes of them.
        register_signal_handlers=lambda *args, **kwargs: None,
    ):
        module.run_superexec(address, insecure=True, superexec_auth_secret=secret)


def run_clientapp(
    *,
    address: str,
    token: str,
    app: App,
    pulled: Callable[[bytes], None],
    pushed: Callable[[], None],
    stays: bool = False,
) -> None:
    """Answer one task with Flower's ClientApp process, by our app: what the server sent as code is dropped unread.

    Args:
        address: host and port of the SuperNode's Runtime API.
        token: the task's.
        app: answers the message.
        pulled: told the message without its content as soon as it is known.
        pushed: told when the reply is with the SuperNode.
        stays: whether this process answers more tasks afterwards.

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
    fit_chunks()
    staying = {"flwr_exit": _leave, "register_signal_handlers": _register_exit_handlers} if stays else {}
    # A forked process would otherwise run its parent's.
    exit_handler.registered_exit_handlers.clear()
    with replaced(
        module,
        RuntimeHttpClient=Client,
        push_message=push,
        install_from_fab=lambda *args, **kwargs: None,
        get_load_client_app_fn=lambda **kwargs: lambda *args: app,
        **staying,
    ):
        module.run_clientapp(address, token, insecure=True, runtime_dependency_install=False)


def _leave(code: int, **_: Any) -> NoReturn:
    """End a task as Flower does, but for its thread that kills the process some seconds later."""
    from flwr.supercore.exit.exit_handler import trigger_exit_handlers

    for before in (True, False):
        trigger_exit_handlers(run_before_force_exit=before)
    # As Flower counts: codes from 100 on are errors.
    sys.exit(0 if 0 <= code < 100 else 1)


def _register_exit_handlers(*, exit_handlers: Sequence[Callable[[], None]], **_: Any) -> None:
    """Leave signals as they are: whatever Flower sends this process by one ends it, and it is replaced."""
    from flwr.supercore.exit.exit_handler import add_exit_handler

    for handler in exit_handlers:
        add_exit_handler(handler)


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
    context = Context(run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={})
    module.push_message(client, reply, context)
    module.push_task_output(client, None, SubStatus.FAILED, reason)
    client.close()
