"""The only private names of Flower that fedpeft touches; a contract test pins them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "Run",
    "api_error",
    "control_client",
    "control_messages",
    "is_link_error",
    "open_runs",
    "run_status",
    "run_superlink",
    "set_identity",
    "set_message_id",
    "start_run",
    "stop_run",
]

ADMIN_HEADER = "x-fedpeft-admin"
"""Header in which the administrator's secret travels to our SuperLink, over TLS."""
KEY_IN_USE, NODE_NOT_FOUND = 23, 24
"""Reasons for which the Control API refuses to register a device, and to unregister one."""
ONLINE, UNREGISTERED = "online", "unregistered"
BUSY_MS = 25_000
"""Milliseconds that one request to a SuperLink waits for the others to have written to its database.

After Flower's own five seconds a request fails, and a device whose request fails drops its message: with a hundred of
them a round never ends. Their patience is 30 seconds.
"""
HEARTBEATS_MISSED = 2
"""Heartbeats that a device may miss before it is held to be gone."""


def set_identity(*, run_id: int, node_id: int) -> None:
    """Tell Flower which run and node this process speaks for: ``Message`` refuses to be built without."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 0
    TaskIdentity.node_id = node_id


def is_link_error(error: BaseException) -> bool:
    """Return whether a ServerApp failed for its SuperLink, which had gone while they talked, and not for itself."""
    import httpx
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, ObjectUnavailableError

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (ObjectPullError, ObjectPushError, ObjectUnavailableError, httpx.TransportError)):
            return True
        found = found.__cause__
    return False


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink does: replies refer to it."""
    message.metadata.__dict__["_message_id"] = message_id


def run_superlink(options: Sequence[str], door: Callable[..., Any], secret: bytes) -> None:
    """Run Flower's SuperLink with a middleware in front of it.

    Args:
        options: of ``flower-superlink``.
        door: an ASGI middleware; gets the app, the header's name and the secret.
        secret: what it must find in the header.
    """
    from flwr.supercore import sql_mixin
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink
    from starlette.middleware import Middleware

    pragmas = {**dict(sql_mixin.SQLITE_PRAGMAS), "busy_timeout": str(BUSY_MS)}
    sql_mixin.SQLITE_PRAGMAS = tuple(pragmas.items())  # type: ignore[assignment]
    extensions.get_middleware = lambda: (Middleware(door, header=ADMIN_HEADER, secret=secret),)
    sys.argv = ["flower-superlink", *options]
    flower_superlink()


def control_client(address: str, root_certificate: bytes, secret: bytes = b"") -> Any:
    """Return Flower's client of a SuperLink's Control API over TLS, as ``flwr supernode`` has it without an account.

    Args:
        address: host and port.
        root_certificate: PEM of the authority that must have signed the SuperLink's certificate.
        secret: the administrator's, for a SuperLink behind a door; b"" for none.
    """
    from flwr.supercore.control import ControlHttpClient

    class Bringing:
        def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
            if secret:
                context.request.headers[ADMIN_HEADER] = secret.decode()
            return call_next(context)

    return ControlHttpClient.from_server_address(
        address, insecure=False, root_certificates=root_certificate, interceptors=[Bringing()]
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


def start_run(client: Any, app: Mapping[str, bytes], settings: Mapping[str, str]) -> int:
    """Submit a run through a Control API client and return its id.

    Args:
        client: of ``control_client``.
        app: files of the Flower app by path, ``pyproject.toml`` among them.
        settings: its run config.
    """
    import hashlib

    from flwr.cli.build import build_fab_from_files
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.supercore.fab import Fab

    content, _ = build_fab_from_files(app)
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    request = control_messages().StartRunRequest(
        fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(settings)), federation=""
    )
    return int(client.StartRun(request).run_id)


def open_runs(client: Any) -> list[int]:
    """Return the ids of those of the newest twenty runs that have not ended."""
    from flwr.common.constant import Status
    from flwr.common.serde import run_from_proto

    found = client.ListRuns(control_messages().ListRunsRequest()).run_dict
    return [run_id for run_id, run in found.items() if run_from_proto(run).status.status != Status.FINISHED]


def stop_run(client: Any, run_id: int) -> None:
    """End a run, so that devices drop what they have of it."""
    client.StopRun(control_messages().StopRunRequest(run_id=run_id))


def run_status(client: Any, run_id: int) -> tuple[str, str, str]:
    """Return a run's status (``pending``, ``starting``, ``running``, ``finished``), how it ended, and in words."""
    from flwr.common.serde import run_from_proto

    found = client.ListRuns(control_messages().ListRunsRequest(run_id=run_id))
    status = run_from_proto(found.run_dict[run_id]).status
    return status.status, status.sub_status, status.details
