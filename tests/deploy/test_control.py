"""Devices at a real SuperLink: TLS and node authentication on the loopback, started once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.engines.deploy.control import Control, Node, sync
from fedpeft.engines.deploy.keys import ensure_certificates, key_to_pem, make_device_key, read_device_key
from fedpeft.engines.deploy.registry import Registry

READY = "Application startup complete"


@dataclass(frozen=True, kw_only=True)
class Link:
    """A running SuperLink: where it answers and where its certificates lie."""

    address: str
    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    folder, port = tmp_path_factory.mktemp("link"), free_port()
    made = ensure_certificates(folder)
    options = {
        "--ssl-certfile": made.certificate,
        "--ssl-keyfile": made.key,
        "--ssl-ca-certfile": made.ca,
        "--isolation": "process",
        "--database": folder / "state.db",
        "--host": "127.0.0.1",
        "--port": port,
    }
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "flower-superlink"),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            *(str(word) for option in options.items() for word in option),
        ],
        env={**os.environ, "FLWR_HOME": str(folder / "flwr"), "FLWR_DISABLE_UPDATE_CHECK": "1"},
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until_ready(process, folder / "log")
        yield Link(address=f"127.0.0.1:{port}", folder=folder)
    finally:
        # Nothing on its disk is looked at again, and it would wait for connections that a failed test left open.
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 120
    while READY not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < limit, log.read_text(errors="replace")
        time.sleep(0.05)


@pytest.fixture
def control(link: Link) -> Iterator[Control]:
    with Control(link.address, link.ca) as control:
        yield control
        for node in control.nodes():
            control.unregister(node.node_id)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "registry")


def add(registry: Registry, folder: Path, *names: str) -> None:
    for name in names:
        registry.add(
            name, lambda number, name=name: make_device_key(folder / f"{name}.key", name=name, client_id=number)
        )


def activate(link: Link, key: Path) -> int:
    """Join as Flower's SuperNode does, with its own client and signature; return the node id."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    private = serialization.load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    client = FleetHttpClient.from_server_address(
        link.address,
        insecure=False,
        root_certificates=link.ca.read_bytes(),
        interceptors=[NodeAuthHttpInterceptor(private, private.public_key())],
    )
    try:
        public_key = key_to_pem(read_device_key(key).public_key)
        return client.ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)).node_id
    finally:
        client._client.close()


def test_a_registered_device_may_join_and_a_removed_one_is_unknown(
    link: Link, control: Control, registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path, "pi", "nano")
    known = sync(control, registry)
    assert {device.name: device.client_id for device in known.values()} == {"pi": 0, "nano": 1}
    ids = {device.name: node_id for node_id, device in known.items()}
    assert activate(link, tmp_path / "pi.key") == ids["pi"]
    registry.remove("pi")
    assert sync(control, registry) == {ids["nano"]: registry.devices[0]}
    assert [node.node_id for node in control.nodes()] == [ids["nano"]]
    with pytest.raises(httpx.HTTPStatusError):
        activate(link, tmp_path / "pi.key")
    assert activate(link, tmp_path / "nano.key") == ids["nano"]


def test_a_key_that_nobody_registered_is_refused(link: Link, control: Control, tmp_path: Path) -> None:
    make_device_key(tmp_path / "stranger.key", name="stranger", client_id=0)
    with pytest.raises(httpx.HTTPStatusError):
        activate(link, tmp_path / "stranger.key")
    assert control.nodes() == []


def test_registering_twice_is_harmless(control: Control, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path, "pi")
    key = registry.devices[0].public_key
    first = control.register(key, name="pi")
    assert control.register(key) == first
    assert sync(control, registry) == sync(control, registry) == {first: registry.devices[0]}
    assert len(control.nodes()) == 1


def test_a_node_says_whether_and_when_it_was_seen(
    link: Link, control: Control, registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path, "pi")
    (node_id,) = sync(control, registry)
    key = registry.devices[0].public_key
    expected = Node(node_id=node_id, public_key=key, name="pi", owner="none", online=False, last_seen_s=None)
    assert control.nodes() == [expected]
    activate(link, tmp_path / "pi.key")
    (node,) = control.nodes()
    assert node.online
    # Heartbeats count 60 s ahead; a clock that runs on for 30 s between two requests would be another fault.
    assert node.last_seen_s is not None and 0 <= node.last_seen_s < 30


def test_a_removed_key_cannot_come_back(control: Control, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path, "pi")
    key = registry.devices[0].public_key
    node_id = control.register(key, name="pi")
    assert control.unregister(node_id)
    assert not control.unregister(node_id)
    with pytest.raises(EngineError, match="had the key of pi before"):
        control.register(key, name="pi")


def test_a_device_that_is_added_during_a_sync_stays(control: Control, tmp_path: Path) -> None:
    """The registry that is handed over was read before; what another administrator added since counts all the same."""
    old, new = Registry.load(tmp_path), Registry.load(tmp_path)
    add(new, tmp_path, "pi")
    assert [device.name for device in sync(control, old).values()] == ["pi"]


def test_another_authority_is_refused_in_one_line(link: Link, tmp_path: Path) -> None:
    others = ensure_certificates(tmp_path)
    with Control(link.address, others.ca) as control, pytest.raises(EngineError) as caught:
        control.nodes()
    text = str(caught.value)
    assert "\n" not in text and f"what answers at {link.address} is not the server of this ca.crt" in text


def test_nobody_there_is_one_line(link: Link) -> None:
    with Control(f"127.0.0.1:{free_port()}", link.ca) as control, pytest.raises(EngineError) as caught:
        control.nodes()
    text = str(caught.value)
    assert "\n" not in text and "no SuperLink answers at 127.0.0.1:" in text and "Connection refused" in text


def test_an_expired_authority_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path, now=datetime.now(UTC) - timedelta(days=4000))
    with pytest.raises(ConfigError, match="expired"):
        Control("127.0.0.1:1", made.ca)
