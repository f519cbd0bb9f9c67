"""Which devices a running SuperLink knows: a small client of its Control API."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedpeft.core.errors import EngineError, printable
from fedpeft.engines import flower_private
from fedpeft.engines.deploy.folder import read_file
from fedpeft.engines.deploy.keys import check_peer_certificate, key_from_pem, key_to_pem
from fedpeft.engines.deploy.registry import Device, Registry
from fedpeft.engines.deploy.superlink import ADMIN_SECRET


@dataclass(frozen=True, kw_only=True)
class Node:
    """A device as a SuperLink knows it.

    Attributes:
        node_id: Flower's number for it; stays the same as long as the key is registered.
        public_key: OpenSSH text without a comment, or None for a key that is none of ours.
        name: what it was called when it was registered, or None.
        owner: the account that it belongs to; ``none`` without accounts.
        online: whether its heartbeats come.
        last_seen_s: seconds since its last heartbeat; once it is offline, since it was held to be gone; None if it has
            never been there.
    """

    node_id: int
    public_key: str | None
    name: str | None
    owner: str
    online: bool
    last_seen_s: float | None


class Control:
    """A connection to the Control API of one SuperLink.

    Args:
        address: host and port, e.g. ``127.0.0.1:8000``.
        ca: the certificate of the authority that signed the SuperLink's; the administrator's secret lies beside it.

    Raises:
        ConfigError: the certificate cannot be read, has expired, or does not hold yet.

    Example:
        >>> with Control("127.0.0.1:8000", Path("ca.crt")) as control:    # doctest: +SKIP
        ...     online = [node for node in control.nodes() if node.online]    # doctest: +SKIP
    """

    def __init__(self, address: str, ca: Path) -> None:
        pem = read_file(ca)
        check_peer_certificate(pem, what=str(ca))
        self._address = address
        secret = ca.with_name(ADMIN_SECRET)
        self._client = flower_private.control_client(
            address, pem, read_file(secret, private=True) if secret.exists() else b""
        )
        self._messages = flower_private.control_messages()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a SuperLink that is told to stop waits for that."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """Return the devices that are registered, by node id.

        Raises:
            EngineError: the SuperLink cannot be reached, is another one, or refuses.
        """
        found = self._ask(self._client.ListNodes, self._messages.ListNodesRequest())
        now = datetime.fromisoformat(found.now).timestamp()
        nodes = [_node(info, now) for info in found.nodes_info if info.status != flower_private.UNREGISTERED]
        return sorted(nodes, key=lambda node: node.node_id)

    def register(self, public_key: str, *, name: str | None = None) -> int:
        """Let a device in and return its node id; one that is in already keeps its own.

        Args:
            public_key: OpenSSH text.
            name: what to call it in Flower's own lists.

        Raises:
            EngineError: the SuperLink cannot be reached or refuses, e.g. because the key was unregistered before.
        """
        request = self._messages.RegisterNodeRequest(public_key=key_to_pem(public_key), name=name)
        try:
            return int(self._ask(self._client.RegisterNode, request).node_id)
        except _RefusedError as refused:
            if refused.code != flower_private.KEY_IN_USE:
                raise
            known = [node.node_id for node in self.nodes() if node.public_key == public_key]
            if not known:
                raise EngineError(
                    f"the SuperLink at {self._address} had the key of {name or 'the device'} before, and refuses it "
                    "since it was removed (make a new key)"
                ) from None
            return known[0]

    def unregister(self, node_id: int) -> bool:
        """Shut a device out at once and for good: its key cannot be registered again.

        Returns:
            Whether it was registered.

        Raises:
            EngineError: the SuperLink cannot be reached or refuses.
        """
        try:
            self._ask(self._client.UnregisterNode, self._messages.UnregisterNodeRequest(node_id=node_id))
        except _RefusedError as refused:
            if refused.code != flower_private.NODE_NOT_FOUND:
                raise
            return False
        return True

    def start_run(self, app: Mapping[str, bytes], settings: Mapping[str, str]) -> int:
        """Submit a run and return its id.

        Args:
            app: files of the Flower app by path.
            settings: its run config.

        Raises:
            EngineError: the SuperLink cannot be reached or refuses.
        """
        return int(self._ask(lambda _: flower_private.start_run(self._client, app, settings), None))

    def stop_run(self, run_id: int) -> None:
        """End a run, if it has not ended by itself: devices then drop what they have of it.

        Raises:
            EngineError: the SuperLink cannot be reached.
        """
        with suppress(_RefusedError):
            self._ask(lambda _: flower_private.stop_run(self._client, run_id), None)

    def stop_earlier_runs(self) -> None:
        """End the runs that a killed launcher has left: their devices would wait for them until Flower misses them.

        Raises:
            EngineError: the SuperLink cannot be reached or refuses.
        """
        for run_id in self._ask(lambda _: flower_private.open_runs(self._client), None):
            self.stop_run(run_id)

    def run_status(self, run_id: int) -> tuple[str, str, str]:
        """Return a run's status (``pending``, ``starting``, ``running``, ``finished``), how it ended, and in words.

        Raises:
            EngineError: the SuperLink cannot be reached or refuses.
        """
        found: tuple[str, str, str] = self._ask(lambda _: flower_private.run_status(self._client, run_id), None)
        return found

    def _ask(self, method: Callable[[Any], Any], request: Any) -> Any:
        import httpx

        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            code, reason = flower_private.api_error(error.response.text) or (0, str(error.response.status_code))
            raise _RefusedError(code, f"the SuperLink at {self._address} refused: {printable(reason)}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise EngineError(_unreachable(self._address, error)) from error


def sync(control: Control, registry: Registry) -> dict[int, Device]:
    """Make a SuperLink know the registered devices and no others.

    Args:
        control: the SuperLink.
        registry: the devices; read again and held meanwhile, so that no device that is being added is shut out.

    Returns:
        The device of each node id.

    Raises:
        EngineError: the SuperLink cannot be reached or refuses.
        ConfigError: the registry is damaged.
    """
    with registry.held():
        nodes = control.nodes()
        known = {node.public_key: node.node_id for node in nodes}
        wanted = {device.public_key for device in registry.devices}
        for node in nodes:
            if node.public_key not in wanted:
                control.unregister(node.node_id)
        return {
            known[device.public_key]
            if device.public_key in known
            else control.register(device.public_key, name=device.name): device
            for device in registry.devices
        }


class _RefusedError(EngineError):
    """The SuperLink understood and said no.

    Args:
        code: Flower's number of the reason, 0 where it gave none.
        reason: one line.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


def _node(info: Any, now: float) -> Node:
    online = info.status == flower_private.ONLINE
    seen = None
    if info.HasField("online_until"):
        # A heartbeat keeps a device online for that long.
        seen = info.online_until - (flower_private.HEARTBEATS_MISSED * info.heartbeat_interval if online else 0)
    return Node(
        node_id=info.node_id,
        public_key=key_from_pem(info.public_key),
        name=info.name if info.HasField("name") else None,
        owner=info.owner_name,
        online=online,
        last_seen_s=None if seen is None else max(0.0, now - seen),
    )


def _unreachable(address: str, error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return (
            f"what answers at {address} is not the server of this ca.crt: {cause.verify_message} "
            "(check the address and the state folder)"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"no SuperLink answers at {address}: {printable(reason)} (start it: fedpeft server)"
