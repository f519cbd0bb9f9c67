"""A server and its devices as a person starts them: processes of the command line on this machine's loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import own_files

COMMAND = [sys.executable, "-m", "fedpeft.cli.main"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def smaller(toy: Sequence[str], clients: int = 3) -> list[str]:
    """Return the toy federation's overrides with other sizes, and nothing that concerns the engine."""
    kept = [one for one in toy if not one.startswith(("num_clients", "cohort_size", "engine.", "display", "report"))]
    return [*kept, f"num_clients={clients}", f"cohort_size={clients}"]


def write_own_files(overrides: Sequence[str], folder: Path) -> list[Path]:
    """Write what the simulated clients of a config hold as one file each."""
    from fedpeft import config as cfg
    from fedpeft.cli.launch import new_config
    from fedpeft.client.building import build_runtime

    runtime = build_runtime(new_config({**cfg.compose(list(overrides)), "run_dir": str(folder / "unused")}))
    return own_files.write_files(runtime, folder / "files")


@dataclass(kw_only=True)
class Federation:
    """Processes by name, and where they write.

    Args:
        folder: state, logs and runs.
        files: the devices' own data.
        overrides: the run's.
    """

    folder: Path
    files: list[Path]
    overrides: list[str]
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words], capture_output=True, text=True, timeout=120, env={**os.environ, **ENVIRONMENT}
        )

    def add_devices(self) -> None:
        from fedpeft.cli.main import main

        for number in range(len(self.files)):
            words = ["add-device", f"d{number}", "--state-dir", str(self.state), "--server", self.address]
            assert main(["server", *words]) == 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_server(self, *more: str) -> None:
        own = [f"server.address={self.address}", f"server.state_dir={self.state}", "display=plain"]
        given = [one.split("=", 1)[0] for one in more]
        config = [] if "resume" in given else [*self.overrides, f"run_dir={self.run_dir}"]
        self._start("server", [*COMMAND, "server", *config, *own, *more])

    def start_client(self, number: int, *more: str, command: Sequence[str] = COMMAND) -> None:
        words = ["client", "--server", self.address, "--ca", str(self.state / "ca.crt")]
        words += ["--key", str(self.state / "devices" / f"d{number}.key"), "--data", str(self.files[number])]
        words += ["--state-dir", str(self.folder / f"device-{number}"), *more]
        self._start(f"client-{number}", [*command, *words])

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, name: str, text: str, seconds: float = 120) -> None:
        """Wait until a process has said something; fails with all that was said."""
        until = time.monotonic() + seconds
        while text not in self.log(name):
            assert time.monotonic() < until, f"{name} never said {text!r}:\n{self.everything()}"
            time.sleep(0.05)

    def wait_until_done(self, seconds: float = 240) -> int:
        try:
            return self.processes["server"].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end:\n{self.everything()}") from None

    def everything(self) -> str:
        logs = sorted(self.folder.glob("*.log")) + sorted(self.state.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )  # fmt: skip


@contextmanager
def federation(folder: Path, files: list[Path], overrides: Sequence[str]) -> Iterator[Federation]:
    """Lend a federation with its devices registered; what it started is ended."""
    made = Federation(folder=folder, files=files, overrides=list(overrides))
    made.add_devices()
    try:
        yield made
    finally:
        made.end()
