"""``fedpeft client`` as a person starts it: joins, is refused, survives its node, ends cleanly."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from light_federation import Federation, environment, federation

from fedpeft.cli import client, main
from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.control import Control
from fedpeft.engines.deploy.device import told
from fedpeft.engines.deploy.keys import ensure_certificates, make_device_key
from fedpeft.engines.deploy.node import free_port


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("server")
    with federation(folder, free_port(), ensure_certificates(folder / "state")) as made:
        yield made


class Command:
    """A running ``fedpeft client``."""

    def __init__(self, server: Federation, data: Path, key: Path) -> None:
        self.folder = data.parent
        self.output = self.folder / "output"
        assert server.tls is not None
        words = ["--server", server.address, "--ca", server.tls.ca, "--key", key, "--data", data]
        words += ["--state-dir", self.folder / "client"]
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedpeft.cli.main", "client", *words],
                stdout=out,
                stderr=out,
                env=environment(self.folder / "flower"),
                # A suite that runs in the background of a shell is born deaf to Ctrl-C, and its children with it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def says(self, text: str, count: int = 1, timeout_s: float = 200) -> None:
        """Wait until it has said something so many times."""
        end = time.monotonic() + timeout_s
        while self.output.read_text().count(text) < count:
            assert time.monotonic() < end, f"never said {text!r}: {self.output.read_text()}"
            time.sleep(0.05)

    def node(self) -> psutil.Process:
        """Return its node."""
        return next(
            child
            for child in psutil.Process(self.process.pid).children()
            if "fedpeft.engines.deploy.node" in child.cmdline()
        )

    def ends(self, timeout_s: float = 200) -> int:
        return self.process.wait(timeout_s)


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    running: list[Command] = []
    yield running
    for command in running:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


def gone(process: psutil.Process) -> bool:
    _, alive = psutil.wait_procs([process], timeout=60)
    return not alive


def test_a_key_that_is_not_registered_ends_it_with_one_line(
    server: Federation, data: Path, commands: list[Command]
) -> None:
    key = data.parent / "device.key"
    make_device_key(key, name="stranger", client_id=0)
    commands.append(Command(server, data, key))
    assert commands[0].ends() == 1
    lines = commands[0].output.read_text().splitlines()
    assert "torch" not in commands[0].output.read_text(), "nothing is loaded for nothing"
    assert "does not know this device's key" in lines[-1] and "add-device" in lines[-1]
    assert all(line.startswith("fedpeft: ") for line in lines), "one line for each thing, and no traceback"


def test_it_joins_survives_its_node_and_ends_when_asked(
    server: Federation, data: Path, commands: list[Command]
) -> None:
    key = data.parent / "device.key"
    assert server.tls is not None
    with Control(server.address, server.tls.ca) as control:
        control.register(make_device_key(key, name="pi", client_id=3), name="pi")
    command = Command(server, data, key)
    commands.append(command)
    command.says("fedpeft: connected")
    assert "client 3 of" in command.output.read_text()
    secret = data.parent / "client" / "runtime.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    first = command.node()
    first.kill()
    command.says("the node ended")
    began = time.monotonic()
    command.says("fedpeft: connected", count=2)
    assert time.monotonic() - began < 45, "Flower takes a node that was killed for present for 60 seconds"
    assert gone(first)

    second = Command(server, data, key)
    commands.append(second)
    assert second.ends() == 2, "one client at a time in one folder"

    node = command.node()
    command.process.send_signal(signal.SIGTERM)
    assert command.ends() == 0
    assert gone(node)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_it(
    server: Federation, data: Path, commands: list[Command], number: int, code: int
) -> None:
    key = data.parent / "device.key"
    assert server.tls is not None
    with Control(server.address, server.tls.ca) as control:
        control.register(make_device_key(key, name="pi", client_id=3), name="pi")
    command = Command(server, data, key)
    commands.append(command)
    command.says("fedpeft: connected")
    node = command.node()
    os.kill(command.process.pid, number)
    assert command.ends() == code
    assert gone(node)


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        client.main(list(argv))
    return caught.value.problems


def test_problems_come_together_before_anything_starts(data: Path) -> None:
    found = problems("--server", "host", "--data", str(data.parent / "no"), "--max-steps", "0", "--id", "1")
    assert len(found) == 3
    assert "HOST:PORT" in found[0] and "--max-steps" in found[1] and "does not exist" in found[2]


def test_no_tls_is_for_this_machine_alone(data: Path) -> None:
    assert "on this machine" in problems("--server", "far:1", "--insecure", "--data", str(data), "--id", "1")[0]
    assert "--ca and --key are needed" in problems("--server", "far:1", "--data", str(data), "--id", "1")[0]


def test_the_client_id_is_the_keys(data: Path) -> None:
    key = data.parent / "device.key"
    make_device_key(key, name="pi", client_id=3)
    files = ensure_certificates(data.parent / "server")
    common = ("--server", "h:1", "--ca", str(files.ca), "--key", str(key), "--data", str(data))
    assert problems(*common, "--id", "4") == ["--id is 4, the key is client 3's (leave --id out)"]
    assert "neither in the key nor" in problems("--server", "localhost:1", "--insecure", "--data", str(data))[0]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for cards")
def test_a_card_needs_a_torch_that_is_built_for_it(data: Path) -> None:
    common = ("--server", "localhost:1", "--insecure", "--data", str(data), "--id", "1")
    [problem] = problems(*common, "--accelerator", "cuda")
    assert problem.startswith("--accelerator cuda: torch") and "built for the CPU alone" in problem


def test_check_says_what_is_wrong_and_fails(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.main(
        ["client", "--server", f"127.0.0.1:{free_port()}", "--insecure", "--data", str(data), "--id", "1", "--check"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert [line for line in lines if line.startswith("problem")] == [
        line for line in lines if "nothing listens" in line
    ]
    assert any(line.startswith("ok") and "2 examples" in line for line in lines)


def test_the_unit_runs_the_same_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--server", "h:1", "--insecure", "--data", str(data), "--id", "1", "--allow", "mine.", "--max-steps", "8"]
    assert main.main(["client", "systemd", *given, "--state-dir", str(data.parent / "a b")]) == 0
    unit = capsys.readouterr().out
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    words = shlex.split(command)
    assert words[:4] == [sys.executable, "-m", "fedpeft.cli.main", "client"]
    again = client.client_parser("x").parse_args(words[4:])
    assert vars(again) == vars(client.client_parser("x").parse_args([*given, "--state-dir", str(data.parent / "a b")]))


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"kind": "connected"}, "connected"),
        ({"kind": "began", "type": "train", "round": 3}, "round 3: training"),
        ({"kind": "began", "type": "query.hello", "round": None}, "a run asks who this is"),
        ({"kind": "done", "type": "train", "round": 3, "seconds": 4.21}, "round 3: done in 4.2 s"),
        ({"kind": "refused", "type": "train", "round": 3, "reason": "no\n\x1b[2J"}, "round 3: refused because no ?[2J"),
        ({"kind": "lost", "reason": "gone"}, "connection lost, trying again until it is back (gone)"),
        ({"kind": "pushed"}, None),
    ],
)
def test_events_are_told_in_a_line(event: dict[str, object], line: str | None) -> None:
    assert told(event) == line
