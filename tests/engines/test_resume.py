"""Killed with -9 at any moment and resumed, a run ends with the same adapter as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedpeft.cli.launch import launch
from fedpeft.cli.main import main
from fedpeft.server.checkpoint import find_checkpoints

Make = Callable[..., dict[str, Any]]
ROUNDS = 4


def start(toy: list[str], run_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "fedpeft.cli.main",
        "simulate",
        *toy,
        f"rounds={ROUNDS}",
        "head=local",
        f"run_dir={run_dir}",
        *more,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A suite that runs in the background of a shell is born deaf to Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def resume(run_dir: Path, *more: str) -> None:
    """Go on with a run in this process, which has torch already; what it resumes was another's."""
    assert main(["simulate", f"resume={run_dir}", *more]) == 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def last_tensors(run_dir: Path) -> bytes:
    return (find_checkpoints(run_dir / "checkpoints")[-1][1] / "tensors.safetensors").read_bytes()


def local_heads(run_dir: Path) -> dict[str, bytes]:
    newest = {path.parent.name: path for path in sorted((run_dir / "checkpoints" / "clients").glob("*/*.safetensors"))}
    return {name: path.read_bytes() for name, path in newest.items()}


@pytest.fixture(scope="module")
def uninterrupted(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert main(["simulate", *toy, f"rounds={ROUNDS}", "head=local", f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.mark.parametrize("moment", ["before the first checkpoint", "in round 2", "in round 4"])
def test_kill_9_and_resume_is_bit_exact(toy: list[str], uninterrupted: Path, tmp_path: Path, moment: str) -> None:
    run_dir = tmp_path / "run"
    process = start(toy, run_dir, "client.local_steps=3")
    states = run_dir / "checkpoints" / "clients"
    trained = {"before the first checkpoint": 1, "in round 2": 2, "in round 4": 4}[moment]
    wait_for(lambda: any(states.glob(f"*/round-{trained:06d}.safetensors")), process)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert workers
    until = time.monotonic() + 5
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in workers), "a worker outlived its launcher"
    resume(run_dir)
    assert last_tensors(run_dir) == last_tensors(uninterrupted)
    assert local_heads(run_dir) == local_heads(uninterrupted)
    rounds = ("round", "eval", "bytes_up", "bytes_down", "virtual_clock_s", "train_loss")
    assert table(run_dir, "rounds.jsonl", rounds) == table(uninterrupted, "rounds.jsonl", rounds)
    clients = ("round", "client_id", "device", "bytes_up", "virtual_s", "outcome")
    assert table(run_dir, "clients.jsonl", clients) == table(uninterrupted, "clients.jsonl", clients)


def cpu_s(pid: int) -> float:
    return float(psutil.Process(pid).cpu_times().user)


def table(run_dir: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = map(json.loads, (run_dir / name).read_text().splitlines())
    return [{column: row[column] for column in columns} for row in rows]


def test_ctrl_c_keeps_checkpoint_and_report_and_exits_130(toy: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(toy, run_dir, "rounds=500", "report=true")
    wait_for(lambda: len(find_checkpoints(run_dir / "checkpoints")) > 0, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert f"resume={run_dir}" in output
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "interrupted"
    assert (run_dir / "report.html").exists()
    assert (run_dir / "adapter" / "adapter_config.json").exists()


def test_a_killed_worker_is_replaced_and_its_client_counted_as_lost(toy: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(toy, run_dir, "rounds=2", "client.local_steps=400")
    wait_for(lambda: (run_dir / "summary.json").exists() and len(children(process.pid)) == 2, process)
    worker = children(process.pid)[0]
    idle_s = cpu_s(worker)
    # The evaluation before round 1 is over when the summary is there: whoever works now, trains.
    wait_for(lambda: cpu_s(worker) > idle_s + 0.3, process)
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    rows = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    assert sum(row["dropped"].get("lost", 0) for row in rows) == 1, rows
    lost = [
        row for row in map(json.loads, (run_dir / "clients.jsonl").read_text().splitlines()) if row["outcome"] == "lost"
    ]
    assert "SIGKILL" in lost[0]["detail"]


def test_a_damaged_newest_checkpoint_costs_a_round_and_changes_nothing(
    toy: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    """The run falls back to the checkpoint before, and every client to the head it had then."""
    run_dir = tmp_path / "run"
    assert main(["simulate", *toy, f"rounds={ROUNDS - 1}", "head=local", f"run_dir={run_dir}"]) == 0
    assert find_checkpoints(run_dir / "checkpoints")[-1][0] == ROUNDS - 1
    (find_checkpoints(run_dir / "checkpoints")[-1][1] / "tensors.safetensors").write_bytes(b"damaged")
    resume(run_dir, f"rounds={ROUNDS}")
    assert last_tensors(run_dir) == last_tensors(uninterrupted)
    assert local_heads(run_dir) == local_heads(uninterrupted)


def test_resume_refuses_other_settings_and_directories(
    toy_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = toy_config("rounds=1")
    assert launch(config, []) == 0
    assert resume_code(config["run_dir"], "method.rank=1", capfd) == (2, "method.rank: was 2, now 1")
    assert resume_code(str(tmp_path / "nothing"), "rounds=9", capfd)[0] == 2
    assert resume_code(config["run_dir"], "seed=0", capfd) == (2, "has done its 1 round ")


def resume_code(run_dir: str, override: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["simulate", f"resume={run_dir}", override])
    error = capfd.readouterr().err
    return code, next((text for text in ("method.rank: was 2, now 1", "has done its 1 round ") if text in error), error)


def test_a_disk_that_fills_while_checkpointing_loses_nothing(toy: list[str], tmp_path: Path) -> None:
    """Under a limit on the size of a file the kernel refuses the checkpoint's tensors, as a full disk does.

    Without it the run goes on.
    """
    run_dir = tmp_path / "run"
    limited = (
        "import resource, sys; from fedpeft.cli.main import main; "
        "_, most = resource.getrlimit(resource.RLIMIT_FSIZE); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (14000, most)); code = main(sys.argv[1:]); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)); sys.exit(code)"
    )
    command = [sys.executable, "-c", limited, "simulate", *toy, "method.rank=16", "rounds=2", f"run_dir={run_dir}"]
    full = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1, full.stderr
    assert "checkpoint of round 1 cannot be written" in full.stderr
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "failed"
    resume(run_dir)
    assert json.loads((run_dir / "summary.json").read_text())["rounds"] == 2
