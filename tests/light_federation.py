"""A real SuperLink on the loopback with a ServerApp that imports nothing heavy, for tests of devices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fedpeft.engines.deploy.keys import Certificates
from fedpeft.engines.deploy.parenthood import die_with

BIN = Path(sys.executable).parent

SERVER_APP = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    out = Path(str(context.run_config["out"]))
    clients = int(context.run_config["clients"])
    while len(nodes := sorted(grid.get_node_ids())) < clients:
        time.sleep(0.1)
    for number in range(1, int(context.run_config["rounds"]) + 1):
        time.sleep(float(context.run_config["pause"]))
        began = time.monotonic()
        content = RecordDict({"config": ConfigRecord({"server-round": number})})
        waiting = set(grid.push_messages(
            [Message(content, dst_node_id=n, message_type="train", group_id=str(number)) for n in nodes]))
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                row = {"round": number, "seconds": time.monotonic() - began}
                if reply.has_error():
                    row.update(code=reply.error.code, reason=reply.error.reason)
                else:
                    row.update(dict(reply.content["metrics"]))
                with out.open("a") as file:
                    file.write(json.dumps(row) + chr(10))
            time.sleep(0.05)
"""
FAB_CLIENT = """
{imports}
from pathlib import Path
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
Path(r"{mark}").touch()
app = ClientApp()
@app.train()
def train(message, context):
    return Message(RecordDict({{"metrics": MetricRecord({{"fab": 1}})}}), reply_to=message)
"""
PYPROJECT = """
[project]
name = "light"
version = "1.0.0"
dependencies = ["flwr"]
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "fedpeft"
[tool.flwr.app.components]
serverapp = "light.server:app"
clientapp = "light.client:app"
[tool.flwr.app.config]
out = "{out}"
pause = {pause}
rounds = {rounds}
clients = {clients}
fedpeft-config = '{config}'
"""


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower keeps everything in one folder and calls nobody."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    quiet["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}


class Federation:
    """A SuperLink, and the ServerApp's rows.

    Attributes:
        address: of the SuperLink.
        rows_path: where the ServerApp writes a line for each reply.
        mark: a file that the FAB's client code would make.
    """

    def __init__(self, folder: Path, port: int, tls: Certificates | None) -> None:
        self.folder, self.address, self.tls = folder, f"127.0.0.1:{port}", tls
        self.rows_path, self.mark = folder / "rows.jsonl", folder / "fab-ran"
        self.env = environment(folder / "flower")

    def submit(
        self,
        *,
        rounds: int,
        clients: int = 1,
        config: dict[str, Any] | None = None,
        imports: Sequence[str] = (),
        pause_s: float = 0.0,
    ) -> None:
        """Start a run; ``imports`` are what the FAB's own client imports, ``pause_s`` stands before each round."""
        app = self.folder / "app"
        needed = "".join(f"import {name}\n" for name in imports)
        (app / "light").mkdir(parents=True)
        (app / "light" / "__init__.py").touch()
        (app / "light" / "server.py").write_text(SERVER_APP)
        (app / "light" / "client.py").write_text(FAB_CLIENT.format(mark=self.mark, imports=needed))
        text = PYPROJECT.format(
            out=self.rows_path, rounds=rounds, clients=clients, config=json.dumps(config or {}), pause=pause_s
        )
        (app / "pyproject.toml").write_text(text)
        (self.folder / "flower").mkdir(exist_ok=True)
        how = "insecure = true" if self.tls is None else f'root-certificates = "{self.tls.ca}"'
        connection = f'[superlink]\ndefault = "light"\n[superlink.light]\naddress = "{self.address}"\n{how}\n'
        (self.folder / "flower" / "config.toml").write_text(connection)
        done = subprocess.run(
            [BIN / "flwr", "run", app, "light"], env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()

    def rows(self) -> list[dict[str, Any]]:
        """Return what the ServerApp has written."""
        lines = self.rows_path.read_text().splitlines() if self.rows_path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(self, count: int, timeout_s: float = 120) -> list[dict[str, Any]]:
        """Return the rows when there are so many."""
        end = time.monotonic() + timeout_s
        while len(self.rows()) < count:
            assert time.monotonic() < end, f"{len(self.rows())} of {count} rows: {self.logs()}"
            time.sleep(0.05)
        return self.rows()

    def logs(self) -> str:
        """Return the ends of the logs."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))


def _wait_for_port(port: int, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, "the SuperLink does not listen"
            time.sleep(0.1)


@contextmanager
def federation(folder: Path, port: int, tls: Certificates | None = None) -> Iterator[Federation]:
    """Run a SuperLink on the loopback, and the SuperExec that starts its ServerApps.

    Args:
        folder: for logs, and for what Flower keeps.
        port: a free one.
        tls: certificates, with which it asks for keys too; None for neither.
    """
    made = Federation(folder, port, tls)
    link: list[Any] = [BIN / "flower-superlink", "--isolation", "process", "--host", "127.0.0.1", "--port", str(port)]
    superexec: list[Any] = [BIN / "flower-superexec", "--runtime-api-address", made.address]
    if tls is None:
        link, superexec = [*link, "--insecure"], [*superexec, "--insecure"]
    else:
        files = ["--ssl-certfile", tls.certificate, "--ssl-keyfile", tls.key, "--ssl-ca-certfile", tls.ca]
        link += [*files, "--enable-supernode-auth"]
        superexec += ["--root-certificates", tls.ca]
    # A test that is killed leaves nothing behind either.
    dies = partial(die_with, os.getpid())
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in (("link", link), ("superexec", superexec)):
            with (folder / f"{name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(command, env=made.env, stdout=log, stderr=log, process_group=0, preexec_fn=dies)
                )
            if name == "link":
                _wait_for_port(port)
        yield made
    finally:
        for process in reversed(running):
            # Its group: a ServerApp that still runs is a child of the SuperExec.
            os.killpg(process.pid, 9)
            process.wait()
