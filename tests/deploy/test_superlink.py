"""The Control API answers the administrator alone; devices' own API stays open to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from superlink import free_port

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.engines.deploy.control import Control
from fedpeft.engines.deploy.keys import ensure_certificates
from fedpeft.engines.deploy.processes import ServerProcesses
from fedpeft.engines.deploy.superlink import ADMIN_SECRET, Door, admin_secret
from fedpeft.engines.flower_private import ADMIN_HEADER


async def _behind(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> int:
    """Return what the door answers, 200 where it lets the request through."""
    told: list[Any] = []

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": kind, "path": path, "headers": list(headers)}
    asyncio.run(Door(_behind, ADMIN_HEADER, b"secret")(scope, None, send))  # type: ignore[arg-type]
    return int(told[0]["status"])


@pytest.mark.parametrize(
    ("path", "brought", "answer"),
    [
        ("/v1/control/list-nodes", None, 403),
        ("/v1/control/start-run", b"wrong", 403),
        ("/v1/control/start-run", b"", 403),
        ("//v1//control/start-run", None, 403),
        ("/V1/Control/start-run", None, 403),
        ("/v1/fleet/../control/start-run", None, 403),
        ("/v1/control/list-nodes", b"secret", 200),
        ("/v1/fleet/pull-messages", None, 200),
        ("/v1/runtime/acquire-task", None, 200),
    ],
)
def test_who_passes_the_door(path: str, brought: bytes | None, answer: int) -> None:
    own = [] if brought is None else [(ADMIN_HEADER.encode(), brought)]
    assert status(path, *own) == answer


def test_a_header_that_comes_twice_is_no_secret() -> None:
    name = ADMIN_HEADER.encode()
    assert status("/v1/control/list-nodes", (name, b"wrong"), (name, b"secret")) == 403


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first = admin_secret(tmp_path)
    assert len(first) == 64
    assert admin_secret(tmp_path) == first
    assert (tmp_path / ADMIN_SECRET).stat().st_mode & 0o777 == 0o600
    (tmp_path / ADMIN_SECRET).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        admin_secret(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcesses]:
    folder = tmp_path_factory.mktemp("server")
    made = ServerProcesses(
        address=f"127.0.0.1:{free_port()}", certificates=ensure_certificates(folder), state_dir=folder
    )
    with made:
        yield made


def test_a_real_superlink_answers_who_brings_the_secret(server: ServerProcesses) -> None:
    with Control(server.local_address, server.certificates.ca) as control:
        assert control.nodes() == []


@pytest.mark.parametrize("route", ["list-nodes", "register-node", "start-run", "list-runs"])
def test_a_stranger_gets_nothing_of_a_real_superlink(server: ServerProcesses, route: str) -> None:
    found = httpx.post(
        f"https://{server.local_address}/v1/control/{route}",
        verify=False,
        content=b"",
        headers={"content-type": "application/protobuf"},
    )
    assert found.status_code == 403


def test_a_wrong_secret_is_one_line(server: ServerProcesses, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(server.certificates.ca.read_bytes())
    admin_secret(tmp_path)
    with Control(server.local_address, ca) as control, pytest.raises(EngineError, match="refused") as caught:
        control.nodes()
    assert "\n" not in str(caught.value)


def test_what_died_is_started_again(server: ServerProcesses) -> None:
    os.kill(server.pids["superexec"], 9)
    server._children["superexec"].wait(10)
    assert server.keep() == ["superexec"]
    assert server.keep() == []


def test_a_taken_port_is_one_line(server: ServerProcesses, tmp_path: Path) -> None:
    second = ServerProcesses(address=server.address, certificates=server.certificates, state_dir=tmp_path)
    with pytest.raises(ConfigError, match="cannot be used: Address already in use"):
        second.__enter__()
