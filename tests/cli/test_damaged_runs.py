"""Resume meets run directories that were damaged, or commands that make no sense for one: nothing is lost silently."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedpeft.cli import launch as launch_module
from fedpeft.cli.main import main

Resume = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def two_rounds(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, to be copied."""
    folder = tmp_path_factory.mktemp("two") / "run"
    argv = sys.argv
    assert main(["simulate", *toy, "rounds=2", f"run_dir={folder}"]) == 0
    sys.argv = argv
    return folder


@pytest.fixture
def resume(two_rounds: Path, said: Resume) -> Resume:
    """Return a function from arguments to the exit code and the lines on stderr of resuming a copy in ``run``."""
    shutil.copytree(two_rounds, "run")
    return partial(said, "simulate", "resume=run")


def rounds(name: str) -> list[int]:
    return [json.loads(line)["round"] for line in Path("run", name).read_text().splitlines()]


def test_without_a_checkpoint_the_tables_begin_anew(resume: Resume) -> None:
    """A run killed before its first checkpoint (checkpoint.every=10) has rounds on record that are done again."""
    shutil.rmtree("run/checkpoints")
    assert resume("rounds=3")[0] == 0
    assert rounds("rounds.jsonl") == [1, 2, 3]
    assert rounds("clients.jsonl") == [r for r in (1, 2, 3) for _ in range(4)]


def test_without_what_the_clients_kept_nothing_goes_on(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fresh heads or residuals would train on without a word, and the model would be another than left alone."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    run = tmp_path / "run"
    assert main(["simulate", *toy, "codec=topk", "rounds=1", f"run_dir={run}"]) == 0
    (run / "checkpoints" / "clients").rename(tmp_path / "elsewhere")
    capfd.readouterr()
    assert main(["simulate", f"resume={run}", "rounds=2"]) == 2
    assert "checkpoints/clients is gone: 4 clients kept something of their own" in capfd.readouterr().err
    (tmp_path / "elsewhere").rename(run / "checkpoints" / "clients")
    assert main(["simulate", f"resume={run}", "rounds=2"]) == 0


@pytest.mark.parametrize("line", [b'{"round": 1, "ev\n', b"[1]\n", b'{"a": 1}\n', b"\xff\n"])
def test_a_damaged_line_of_the_record_is_named_and_nothing_is_cut(resume: Resume, line: bytes) -> None:
    table = Path("run/rounds.jsonl")
    table.write_bytes(line + table.read_bytes())
    before = table.read_bytes()
    code, lines = resume("rounds=3")
    assert code == 1
    assert lines == [f"fedpeft: {table.absolute()} line 1 is damaged (restore the file, or delete that line)"]
    assert table.read_bytes() == before


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"initial": 3}'])
def test_a_damaged_summary_is_written_anew(resume: Resume, content: bytes) -> None:
    Path("run/summary.json").write_bytes(content)
    assert resume("rounds=3") == (0, [])
    assert json.loads(Path("run/summary.json").read_text())["rounds"] == 3


@pytest.mark.parametrize("content", [b"\xff\x80", b"", b"[1]", b"a: *x"])
def test_a_damaged_config_is_one_line(resume: Resume, content: bytes) -> None:
    Path("run/config.yaml").write_bytes(content)
    code, lines = resume("rounds=3")
    assert code == 2
    assert len(lines) == 1
    assert "config.yaml cannot be read" in lines[0]


def test_resume_takes_neither_a_run_dir_nor_a_sweep(resume: Resume) -> None:
    code, lines = resume("rounds=3", "run_dir=other")
    assert code == 2
    assert lines == ["fedpeft: run_dir cannot be given beside resume: the run goes on in run (leave it out)"]
    code, lines = resume("-m", "rounds=3,4")
    assert code == 2
    assert lines == ["fedpeft: -m cannot sweep over the one run that resume=run continues (leave -m out)"]
    assert not Path("other").exists()
    assert not Path("runs").exists()


def test_a_run_on_relative_folders_is_resumed_from_elsewhere(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {one.split("=")[0]: Path(one.split("=")[1]) for one in toy if one.startswith(("model.path", "task.path"))}
    for name, folder in sources.items():
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(["simulate", *toy, *(f"{name}={name}" for name in sources), "rounds=1", "run_dir=run"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["simulate", "resume=../run", "rounds=2"]) == 0
    assert main(["simulate", "resume=../run", "rounds=3", "task.path=../task.path"]) == 0


def test_a_directory_that_is_taken_away_while_it_is_waited_for_is_made_anew(tmp_path: Path) -> None:
    """A run that was refused removes its new directory; whoever waited must not hold a lock on nothing."""
    run_dir = tmp_path / "run"
    held, waiting = threading.Event(), threading.Event()

    def refused() -> None:
        with launch_module._locked(run_dir):
            held.set()
            waiting.wait(5)
            time.sleep(0.1)
            shutil.rmtree(run_dir)

    thread = threading.Thread(target=refused)
    thread.start()
    assert held.wait(5)
    waiting.set()
    with launch_module._locked(run_dir):
        assert (run_dir / ".lock").exists()
    thread.join()
