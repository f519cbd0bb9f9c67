"""Flower's server processes: SuperLink, which devices connect to, and SuperExec, which starts the ServerApp."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.engines.deploy.certificates import Certificates
from fedpeft.engines.deploy.folder import write_file
from fedpeft.engines.deploy.parenthood import die_with
from fedpeft.engines.deploy.whereabouts import Whereabouts, join_address, split_address

READY_S = 60.0
STOP_S = 15.0
OBJECTS = "flower.db"


@dataclass(kw_only=True)
class ServerProcesses:
    """A SuperLink and a SuperExec as children of this process; a context manager that ends both.

    A child that ends by itself is started again by `keep`: the SuperLink finds devices, messages and runs in its
    database, and the ServerApp waits for it meanwhile.

    Args:
        address: host and port that devices connect to.
        certificates: the server's.
        state_dir: folder of the database, the logs and Flower's own files.
    """

    address: str
    certificates: Certificates
    state_dir: Path
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    def __enter__(self) -> ServerProcesses:
        _refuse_taken(*split_address(self.address))
        write_file(self._secret, secrets.token_bytes(32), private=True)
        try:
            for name in ("superlink", "superexec"):
                self._start(name)
                self._wait_until_ready() if name == "superlink" else None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The SuperExec first, with its ServerApp: a ServerApp without a SuperLink would try again and again.
        for name in ("superexec", "superlink"):
            if child := self._children.pop(name, None):
                stop(child)

    @property
    def local_address(self) -> str:
        """Host and port by which this machine reaches its own SuperLink."""
        return Whereabouts(address=self.address, run_dir="", pid=os.getpid()).local_address

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self._children.items()}

    def keep(self) -> list[str]:
        """Start again what has ended by itself, and return the names."""
        ended = [name for name, child in self._children.items() if child.poll() is not None]
        for name in ended:
            self._start(name)
        return ended

    def server_app(self) -> psutil.Process | None:
        """Return the ServerApp that was started last, None where there is none."""
        with suppress(psutil.Error):
            children = psutil.Process(self._children["superexec"].pid).children(recursive=True)
            found = [
                one for one in children if is_alive(one) and any("flwr-serverapp" in word for word in one.cmdline())
            ]
            return max(found, key=lambda one: one.create_time(), default=None)
        return None

    @property
    def _secret(self) -> Path:
        return self.state_dir / "superexec.secret"

    def _start(self, name: str) -> None:
        launcher = os.getpid()
        with (self.state_dir / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                _command(name, self),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_environment(self.state_dir)},
                # Ctrl-C is the launcher's to handle, and a launcher that was killed leaves no server behind.
                start_new_session=True,
                preexec_fn=lambda: die_with(launcher),
            )

    def _wait_until_ready(self) -> None:
        host, port = split_address(self.local_address)
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            if self._children["superlink"].poll() is not None:
                break
            with suppress(OSError), socket.create_connection((host, port), timeout=1.0):
                return
            time.sleep(0.1)
        raise EngineError(f"Flower's SuperLink did not start: see {self.state_dir / 'superlink.log'}")


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs: one that has ended and was not waited for does not."""
    try:
        runs: bool = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return runs


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started: asked first, killed if it does not go."""
    for how, seconds in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return


def _refuse_taken(host: str, port: int) -> None:
    """Refuse a port that somebody else listens on; the SuperLink would say so in its log only.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"server.address={join_address(host, port)} cannot be used: {error.strerror} (another port?)"
            ) from error


def _command(name: str, server: ServerProcesses) -> Sequence[str]:
    host, port = split_address(server.address)
    found = server.certificates
    secret = ["--superexec-auth-secret-file", str(server._secret)]
    if name == "superlink":
        return [
            *(sys.executable, "-m", "fedpeft.engines.deploy.superlink", str(server.state_dir), "--"),
            *("--host", host, "--port", str(port), "--isolation", "process"),
            *("--ssl-certfile", str(found.certificate), "--ssl-keyfile", str(found.key)),
            *("--ssl-ca-certfile", str(found.ca), "--enable-supernode-auth"),
            *("--database", str(server.state_dir / OBJECTS), "--disable-runtime-dependency-installation"),
            *secret,
        ]
    return [
        *_program("flower-superexec"),
        *("--runtime-api-address", server.local_address, "--root-certificates", str(found.ca)),
        *secret,
    ]


def _program(name: str) -> list[str]:
    """Return the command of one of Flower's programs in this environment, whatever PATH says."""
    return [sys.executable, str(Path(sys.executable).with_name(name))]


def _environment(state_dir: Path) -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(state_dir / "flower"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        # SuperExec finds Flower's other programs by PATH.
        "PATH": os.pathsep.join([here, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
    }
