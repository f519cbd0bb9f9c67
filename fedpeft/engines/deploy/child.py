"""A forked child that answers one message, or that says why another one could not."""

from __future__ import annotations

import base64
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import OUT_OF_MEMORY, EngineError, FedPeftError
from fedpeft.engines.deploy.parenthood import die_with
from fedpeft.engines.deploy.telling import Hearer, Teller

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from fedpeft.engines.flower_private_device import App

RAISED = 2
"""Flower's code for a ClientApp that raised."""
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory")
log = logging.getLogger(__name__)


def forked(hearer: Hearer, work: Callable[[Callable[..., None]], int]) -> int:
    """Fork a child that does some work and ends; return its process id.

    The child has a process group of its own and dies with this process.

    Args:
        hearer: its writing end is the child's.
        work: called in the child with a function that tells this process something; returns the child's exit code.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with(parent)
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        code = work(Teller(hearer.write_fd))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not the parent's way out: no exit handlers, no destructors of what was inherited.
        os._exit(code)


def answer_task(
    spec: Any,
    tell: Callable[..., None],
    *,
    make_app: Callable[[], App],
    limits: Callable[[], AbstractContextManager[None]],
    stays: bool = False,
) -> int:
    """Answer a task by our ClientApp; return the exit code, 0 where the app has answered without an error.

    Args:
        spec: Flower's description of the task.
        tell: tells the parent.
        make_app: returns the app.
        limits: entered around it.
        stays: whether this process answers more tasks afterwards.
    """
    from fedpeft.engines.flower_private_device import run_clientapp

    good = False

    def handle(message: Message, context: Context) -> Message:
        nonlocal good
        tell("config", text=str(context.run_config.get(_config_key(), "")) or None)
        told = {"type": message.metadata.message_type, "round": _round_of(message)}
        tell("began", **told)
        began = time.monotonic()
        reply = _reply(make_app, limits, message, context)
        good = not reply.has_error()
        if good:
            tell("done", **told, seconds=time.monotonic() - began)
        else:
            tell("refused", **told, reason=reply.error.reason)
        return reply

    try:
        run_clientapp(
            address=spec.runtime_api_address,
            token=spec.token,
            app=handle,
            pulled=lambda message: tell("pulled", message=base64.b64encode(message).decode()),
            pushed=lambda: tell("pushed"),
            stays=stays,
        )
    except SystemExit as ending:
        return int(ending.code or 0) if good else 1
    return 1


def answer_for(spec: Any, tell: Callable[..., None], *, pulled: bytes | None, code: int, reason: str) -> int:
    """Answer a task with an error in the place of a child that died over it; return the exit code.

    Args:
        spec: Flower's description of the task.
        tell: tells the parent.
        pulled: the message as the dead child told it, None if it had none.
        code: Flower's code of the error.
        reason: of the error.
    """
    from fedpeft.engines.flower_private_device import push_error

    push_error(address=spec.runtime_api_address, token=spec.token, pulled=pulled, code=code, reason=reason)
    tell("pushed")
    return 0


def _config_key() -> str:
    from fedpeft.core.wire import RUN_CONFIG_KEY

    return RUN_CONFIG_KEY


def _round_of(message: Message) -> int | None:
    """Return the round that a message belongs to, None where it does not say."""
    from fedpeft.core.wire import SERVER_ROUND

    said = [record.get(SERVER_ROUND) for record in message.content.config_records.values()]
    return next((value for value in said if isinstance(value, int)), None)


def _reply(
    make_app: Callable[[], App],
    limits: Callable[[], AbstractContextManager[None]],
    message: Message,
    context: Context,
) -> Message:
    """Return the app's reply; an error's text in one where it raises, as the simulation's engines tell it."""
    from flwr.app import Error, Message

    try:
        with limits():
            return make_app()(message, context)
    except Exception as error:
        # The server gets one line; the operator of the device finds the rest here.
        log.exception("cannot answer %s", message.metadata.message_type)
        told = _told(error)
    return Message(Error(RAISED, f"{type(told).__name__}: {told}"), reply_to=message)


def _told(error: Exception) -> Exception:
    """Return an error as it is told; what libraries say when memory is short is told in plain words."""
    text = str(error)
    if isinstance(error, MemoryError) or (
        not isinstance(error, FedPeftError) and any(known in text for known in _OUT_OF_MEMORY)
    ):
        detail = text.splitlines()[0] if text else "MemoryError"
        return EngineError(f"{OUT_OF_MEMORY} on the device: {detail} (give it a smaller batch, rank or model)")
    return error
