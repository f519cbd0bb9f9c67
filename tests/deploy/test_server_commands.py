"""``fedpeft server add-device | remove-device | devices | status``, without a server and beside a real SuperLink."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from superlink import Link, activate, free_port, running_link

from fedpeft.cli.main import main
from fedpeft.engines.deploy.control import Control
from fedpeft.engines.deploy.keys import make_device_key, read_device_key
from fedpeft.engines.deploy.registry import Registry
from fedpeft.engines.deploy.whereabouts import Whereabouts, join_address, split_address
from fedpeft.server.files import append_lines

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function from the words behind ``fedpeft server`` to the exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str, folder: Path = tmp_path / "state") -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["server", *words, "--state-dir", str(folder)])
        return code, *capsys.readouterr()

    return run


def loaded(answer: tuple[int, str, str]) -> Any:
    code, out, err = answer
    assert (code, err) == (0, "")
    return json.loads(out)


def refused(answer: tuple[int, str, str], *words: str) -> None:
    code, _, err = answer
    assert code == 2 and err.count("\n") == 1 and all(word in err for word in words), err


def test_a_new_device_gets_a_key_and_a_line_to_paste(server: Command, tmp_path: Path) -> None:
    code, out, err = server("add-device", "pi", "--server", "fl.example.org:9000")
    state = tmp_path / "state"
    key = state / "devices" / "pi.key"
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert "fedpeft client --server fl.example.org:9000 --ca ca.crt --key pi.key --data data.jsonl" in lines
    assert str(state / "ca.crt") in lines and any(line.startswith(str(key)) for line in lines)
    assert lines[-1] == "the server will know when it starts"
    (device,) = Registry.load(state).devices
    found = read_device_key(key)
    assert (found.name, found.client_id, found.public_key) == ("pi", 0, device.public_key)
    assert "BEGIN" not in out, "a private key has no business on a screen"


def test_a_key_that_was_made_on_the_device_stays_there(server: Command, tmp_path: Path) -> None:
    public = tmp_path / "jetson.pub"
    public.write_text(make_device_key(tmp_path / "jetson", name="x", client_id=0) + " root@jetson\n")
    found = loaded(server("add-device", "lab-jetson", "--key", str(public), "--server", "h:1", "--json"))
    assert found["key"] is None and found["public_key"] == read_device_key(tmp_path / "jetson").public_key
    assert found["command"] == "fedpeft client --server h:1 --ca ca.crt --key jetson --data data.jsonl"
    assert not (tmp_path / "state" / "devices").exists()


def test_wrong_words_take_one_line_and_register_nothing(server: Command, tmp_path: Path) -> None:
    make_device_key(tmp_path / "private", name="x", client_id=0)
    (tmp_path / "nonsense").write_text("hello")
    refused(server("add-device", "Pi"), "a device's name")
    refused(server("add-device", "pi", "--server", "host"), "HOST:PORT")
    refused(server("add-device", "pi", "--server", "a b:1"), "host must be")
    refused(server("add-device", "pi", "--key", str(tmp_path / "private")), "private key", ".pub")
    refused(server("add-device", "pi", "--key", str(tmp_path / "nonsense")), "nonsense is damaged")
    refused(server("add-device", "pi", "--key", str(tmp_path / "nowhere")), "cannot be read")
    refused(server("remove-device", "pi"), "no device 'pi'")
    assert Registry.load(tmp_path / "state").devices == ()
    assert not (tmp_path / "state" / "devices").exists()


def test_a_second_device_of_the_name_leaves_the_firsts_key_alone(server: Command, tmp_path: Path) -> None:
    server("add-device", "pi")
    before = (tmp_path / "state" / "devices" / "pi.key").read_bytes()
    refused(server("add-device", "pi"), "already")
    assert (tmp_path / "state" / "devices" / "pi.key").read_bytes() == before


def test_a_key_file_that_a_crash_left_is_no_obstacle(server: Command, tmp_path: Path) -> None:
    left = tmp_path / "state" / "devices" / "pi.key"
    make_device_key(left, name="pi", client_id=7)
    found = loaded(server("add-device", "pi", "--json"))
    assert read_device_key(left).public_key == found["public_key"]
    assert read_device_key(left).client_id == found["client_id"] == 0


def test_a_removed_devices_key_is_gone(server: Command, tmp_path: Path) -> None:
    server("add-device", "pi")
    assert loaded(server("remove-device", "pi", "--json")) == {
        "name": "pi",
        "client_id": 0,
        "removed": True,
        "told": False,
    }
    assert not (tmp_path / "state" / "devices" / "pi.key").exists()
    assert loaded(server("devices", "--json")) == []
    assert "no devices yet" in server("devices")[1]


def test_devices_are_listed_whole_on_a_narrow_screen(server: Command) -> None:
    name = "kitchen-" + "x" * 40
    found = loaded(server("add-device", name, "--json"))
    code, out, _ = server("devices")
    assert code == 0 and all(len(line) <= 80 for line in out.splitlines())
    together = "".join(out.split())
    assert name[:12] in together and found["fingerprint"][:12] in together and "\u2026" not in out
    assert loaded(server("devices", "--json"))[0]["fingerprint"] == found["fingerprint"]


def test_status_without_a_server_shows_the_registry(server: Command, tmp_path: Path) -> None:
    code, out, _ = server("status")
    assert code == 0 and "no server runs" in out and "no devices yet" in out
    server("add-device", "pi")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    Whereabouts(address="127.0.0.1:1", run_dir="runs/x", pid=ended.pid).write(tmp_path / "state")
    code, out, _ = server("status")
    assert code == 0 and f"process {ended.pid}, which was at 127.0.0.1:1, has ended" in out and "pi" in out
    Whereabouts(address=f"127.0.0.1:{free_port()}", run_dir="runs/x", pid=os.getpid()).write(tmp_path / "state")
    found = loaded(server("status", "--json"))
    assert not found["server"]["running"] and "Connection refused" in found["server"]["reason"]
    assert found["devices"] == [{"name": "pi", "client_id": 0, "online": None, "last_seen_s": None, "node_id": None}]


def test_a_server_that_cannot_be_told_is_named_and_the_device_is_out_all_the_same(
    server: Command, tmp_path: Path
) -> None:
    server("add-device", "pi")
    Whereabouts(address=f"127.0.0.1:{free_port()}", run_dir="runs/x", pid=os.getpid()).write(tmp_path / "state")
    code, out, err = server("remove-device", "pi")
    assert code == 1 and "pi is shut out" in out and err.count("\n") == 1 and "was not told" in err
    assert Registry.load(tmp_path / "state").devices == ()


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with running_link(tmp_path_factory.mktemp("link")) as link:
        _, port = split_address(link.address)
        run_dir = str(link.folder / "run")
        # As a server that listens on every interface would write it.
        Whereabouts(address=join_address("0.0.0.0", port), run_dir=run_dir, pid=os.getpid()).write(link.folder)
        yield link


def test_a_running_server_learns_of_devices_at_once(server: Command, link: Link) -> None:
    assert loaded(server("add-device", "pi", "--server", "127.0.0.1:1", "--json", folder=link.folder))["told"]
    key = link.folder / "devices" / "pi.key"
    away = link.folder / "on_the_device.key"
    away.write_bytes(key.read_bytes())
    away.chmod(0o600)
    node_id = activate(link, away)
    found = loaded(server("status", "--json", folder=link.folder))
    assert found["server"]["running"] and found["round"] is None
    (device,) = found["devices"]
    assert (device["name"], device["online"], device["node_id"]) == ("pi", True, str(node_id))
    assert 0 <= device["last_seen_s"] < 30
    (link.folder / "run").mkdir()
    row = {"round": 3, "cohort_size": 2, "num_replies": 1, "dropped": {"lost": 1}, "train_loss": 0.5, "wall_s": 9.0}
    append_lines(link.folder / "run" / "rounds.jsonl", [{**row, "round": 2}, {**row, "eval": {"accuracy": 0.75}}])
    code, out, _ = server("status", folder=link.folder)
    assert code == 0
    assert "round 3: 1 of 2 clients answered, lost 1, training loss 0.5, accuracy 0.75" in out
    assert "yes" in out and " ago" in out
    assert loaded(server("status", "--json", folder=link.folder))["round"]["round"] == 3
    assert loaded(server("remove-device", "pi", "--json", folder=link.folder))["told"]
    with Control(link.address, link.ca) as control:
        assert control.nodes() == []


def test_a_new_name_in_the_certificate_asks_for_a_restart(server: Command, link: Link) -> None:
    out = server("add-device", "one", "--server", "127.0.0.1:1", folder=link.folder)[1]
    assert "started again" not in out
    out = server("add-device", "two", "--server", "fl.example.org:1", folder=link.folder)[1]
    assert "started again" in out


def test_other_words_go_to_the_hydra_app(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    app = ModuleType("fedpeft.cli.serve")
    app.run = lambda argv: seen.append(list(argv)) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fedpeft.cli.serve", app)
    for argv in ([], ["+experiment=demo"], ["--help"], ["resume=runs/a", "rounds=3"]):
        assert main(["server", *argv]) == 7
        assert seen.pop() == argv


@pytest.mark.parametrize("word", ["add-device", "remove-device", "devices", "status"])
def test_help_has_examples(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["server", word, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"fedpeft server {word}" in out and "--state-dir" in out and "--json" in out


@pytest.mark.parametrize(
    ("text", "found"), [("h:1", ("h", 1)), ("[::1]:8000", ("::1", 8000)), ("1.2.3.4:65535", ("1.2.3.4", 65535))]
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert split_address(text) == found
    assert join_address(*found) == text


def test_the_own_address_of_a_server_on_every_interface_is_the_loopbacks() -> None:
    for address, local in (("0.0.0.0:8", "127.0.0.1:8"), ("[::]:8", "[::1]:8"), ("10.0.0.7:8", "10.0.0.7:8")):
        assert Whereabouts(address=address, run_dir="", pid=1).local_address == local


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"address": "h:1"}',
        '{"address": 1, "run_dir": "", "pid": 1}',
        '{"address": "h", "run_dir": "", "pid": 1}',
        '{"address": "h:1", "run_dir": 1, "pid": 1}',
        '{"address": "h:1", "run_dir": "", "pid": "1"}',
        '{"address": "h:1", "run_dir": "", "pid": true}',
    ],
)
def test_a_damaged_state_is_one_line(server: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text(content)
    refused(server("status"), "state.json is damaged", "delete it")


def test_neither_torch_nor_flower_is_imported_without_a_server(tmp_path: Path) -> None:
    code = (
        "import sys; from fedpeft.cli.main import main; "
        f"assert main(['server', 'add-device', 'pi', '--state-dir', {str(tmp_path)!r}]) == 0; "
        f"assert main(['server', 'status', '--state-dir', {str(tmp_path)!r}]) == 0; "
        "print(sorted({'torch', 'flwr', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
