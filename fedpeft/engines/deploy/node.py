"""Flower's SuperNode in a process of its own, with a short poll, that tells its parent how its connection fares."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedpeft.engines.deploy.telling import Event, Hearer, Teller

LOOPBACK = "127.0.0.1"
REFUSED = 77
"""Exit code of a node that the server does not take: to try again would not help."""
_END_S = 8.0


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a SuperNode is started with.

    Args:
        server: ``host:port``.
        ca: file of the certificate that the server's must come from; None for a connection without TLS.
        key: file of the device's private key; None where the server asks for none.
        secret: file of the secret that guards the node's local port.
        config: what Flower calls the node's config: ``partition-id`` and the like.
        poll_s: seconds between two questions to a server that had nothing.
        log: file that the node writes its log to.
        link: file that the node notes the last download's seconds in, as ``client.own`` reads it; None for none.
        last_id: what the server called this node when it was last there, None if nobody knows.
    """

    server: str
    ca: Path | None
    key: Path | None
    secret: Path
    config: Mapping[str, int | float | str | bool]
    poll_s: float = 0.5
    log: Path
    link: Path | None = None
    last_id: int | None = None


class Node:
    """A running SuperNode.

    Args:
        settings: what to start it with.

    Attributes:
        address: of its Runtime API, on this machine's loopback.
        hearer: where it tells ``connected``, ``lost``, ``back`` and ``refused``.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self.address = f"{LOOPBACK}:{free_port()}"
        self.hearer = Hearer()
        with settings.log.open("ab") as log:
            self._process = _start(settings, self.address, self.hearer.write_fd, log)
        self.hearer.told()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def events(self) -> list[Event]:
        """Return what it told since the last call."""
        return self.hearer.hear()

    def ended(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it: first by asking, so that the server hears of it, then by force."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.hearer.close()


def free_port() -> int:
    """Return a port of the loopback that was free just now."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def _start(settings: NodeSettings, address: str, fd: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", __name__, "--tell", str(fd), "--parent", str(os.getpid())]
    command += ["--poll", str(settings.poll_s), *(["--link", str(settings.link)] if settings.link else [])]
    command += [] if settings.last_id is None else ["--last-id", str(settings.last_id)]
    command += ["--", "--isolation", "process", "--superlink", settings.server]
    command += ["--host", LOOPBACK, "--port", address.rpartition(":")[2]]
    command += ["--superexec-auth-secret-file", str(settings.secret)]
    command += ["--insecure"] if settings.ca is None else ["--root-certificates", str(settings.ca)]
    if settings.key is not None:
        command += ["--auth-supernode-private-key", str(settings.key)]
    if settings.config:
        command += ["--node-config", " ".join(f"{name}={_toml(value)}" for name, value in settings.config.items())]
    # A group of its own: Ctrl-C is for the parent, which ends it in order.
    return subprocess.Popen(
        command, pass_fds=(fd,), process_group=0, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
    )


def _environment() -> dict[str, str]:
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_LOG_LEVEL": "WARNING"}
    return {**quiet, **os.environ}


def _toml(value: int | float | str | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Flower cuts at quotes before it reads TOML, so none may stand in the text.
        escaped = "".join(c if c.isprintable() and c not in '\\"' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    return str(value)


def main(argv: Sequence[str]) -> int:
    """Run a SuperNode until it is told to end; ``python -m fedpeft.engines.deploy.node`` does, as `Node` starts it.

    Args:
        argv: ``--tell FD --parent PID --poll SECONDS [--link FILE] [--last-id ID] -- OPTIONS OF FLOWER-SUPERNODE``.
    """
    from fedpeft.engines.deploy.parenthood import die_with
    from fedpeft.engines.flower_private_node import run_supernode
    from fedpeft.server.files import write_atomic

    parser = argparse.ArgumentParser(prog="fedpeft.engines.deploy.node")
    parser.add_argument("--tell", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--poll", type=float, required=True)
    parser.add_argument("--link", type=Path)
    parser.add_argument("--last-id", type=int)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args(argv)
    die_with(given.parent)
    teller = Teller(given.tell)

    def tell(kind: str, **values: str | int) -> None:
        teller(kind, **values, at=time.time())
        if kind == "refused":
            # Flower would now wait for its web server's thread, or for a signal to itself.
            os._exit(REFUSED)

    def downloaded(seconds: float) -> None:
        if given.link is None:
            return
        try:
            write_atomic(given.link, json.dumps({"down_s": seconds}).encode())
        except OSError as error:
            # A full disk must not cost the message.
            print(f"node: the download's seconds cannot be noted: {error}", file=sys.stderr, flush=True)

    print(f"node: flower-supernode {shlex.join(given.options)}", file=sys.stderr, flush=True)
    run_supernode(given.options, poll_s=given.poll, tell=tell, downloaded=downloaded, last_id=given.last_id)
    # Flower comes here when its loop ended by an error; its web server's thread would keep the process for ever.
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
