"""A real SuperLink for tests, with TLS and node authentication, and a device that joins as Flower's SuperNode does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.engines.deploy.keys import ensure_certificates, key_to_pem, read_device_key

READY = "Uvicorn running on"


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


@contextmanager
def running_link(folder: Path) -> Iterator[Link]:
    """Run a SuperLink on a free port of the loopback, with certificates and database in ``folder``."""
    made, port = ensure_certificates(folder), free_port()
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
        _wait_until_ready(process, folder / "log")
        yield Link(address=f"127.0.0.1:{port}", folder=folder)
    finally:
        # Nothing on its disk is looked at again, and it would wait for connections that a failed test left open.
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 120
    while READY not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < limit, log.read_text(errors="replace")
        time.sleep(0.05)


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
