"""``fedpeft devices bench`` writes a profile of this machine, or nothing."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedpeft.cli import devices_bench
from fedpeft.cli.devices_progress import BenchProgress
from fedpeft.cli.main import main
from fedpeft.device_profiles.link import measure_link
from fedpeft.device_profiles.presets import load_profile

KEYS = {
    "profile", "name", "date", "threads", "gemm_gflops", "bandwidth_gb_per_s", "train_efficiency", "step_overhead_ms",
    "check", "share_of_core", "total_mb", "available_mb", "link", "power",
}  # fmt: skip


def test_bench_writes_a_profile_that_other_commands_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["devices", "bench", "--seconds", "0.1", "--output", "board.yaml", "--base", "rpi4_4gb", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() == KEYS
    profile = load_profile("board.yaml")
    assert data["name"] == profile.name == "board"
    assert profile.device_class == "sbc"
    assert profile.compute.train_efficiency == pytest.approx(data["train_efficiency"], rel=1e-3)
    assert profile.source_of("compute.train_efficiency").kind == "measured"
    assert main(["devices", "show", "./board.yaml"]) == 0
    capsys.readouterr()
    before = Path("board.yaml").read_bytes()
    assert main(["devices", "bench", "--seconds", "0.1", "--output", "board.yaml"]) == 2
    assert "board.yaml exists: give --force" in capsys.readouterr().err
    assert Path("board.yaml").read_bytes() == before
    assert main(["devices", "bench", "--seconds", "0.1", "--output", "board.yaml", "--force", "--name", "other"]) == 0
    out = capsys.readouterr().out
    assert "compute.achievable_gflops.fp32" in out and "check: a step of another size" in out
    assert load_profile("board.yaml").name == "other"


def test_every_wrong_option_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedpeft.device_profiles.bench.measure", lambda *_, **__: pytest.fail("measured"))
    wrong = ["--seconds", "0", "--server", "nowhere", "--base", "laptop_gpu", "--name", "a b", "--threads", "0"]
    assert main(["devices", "bench", *wrong, "--output", str(tmp_path / "a.txt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and all(line.startswith("fedpeft: ") for line in lines)
    assert any("did you mean laptop_cpu" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "bench", "--server", "127.0.0.1:1", "--output", str(tmp_path / "a.yaml")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("fedpeft: the link to 127.0.0.1:1 cannot be measured: ")
    assert list(tmp_path.iterdir()) == []


def test_control_c_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedpeft.device_profiles.bench._load", interrupted)
    assert main(["devices", "bench", "--seconds", "0.1", "--output", str(tmp_path / "a.yaml")]) == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.splitlines()[-1] == "fedpeft: interrupted"


def test_serve_link_answers_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    options = argparse.Namespace(host="127.0.0.1", port=0)
    thread = threading.Thread(target=devices_bench.serve_link, args=(options, stop))
    thread.start()
    out = ""
    while "\n" not in out:
        out += capsys.readouterr().out
    address = out.split("listening on ")[1].split(";")[0]
    assert measure_link(address, budget_s=0.02).down_payload_mbps > 0
    stop.set()
    thread.join()
    assert "MB both ways" in capsys.readouterr().out


def test_control_c_ends_the_server_well() -> None:
    command = [sys.executable, "-m", "fedpeft.cli.main", "devices", "serve-link", "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
        text=True,
        # A suite in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("listening on 127.0.0.1:")
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert (server.returncode, out, err) == (0, "", "fedpeft: stopped\n")


def test_a_port_out_of_range_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "serve-link", "--port", "70000"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_progress_is_told_beyond_two_seconds_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 s a quarter is done at once: 15 s are left. A short measurement says nothing."""
    with BenchProgress(1.0) as progress:
        progress.tell("LoRA step", 0.25)
    assert capsys.readouterr().err == ""
    with BenchProgress(20.0) as progress:
        progress.tell("LoRA step", 0.25)
        progress.tell("", 1.0)
    assert capsys.readouterr().err == "LoRA step, about 15 s left\n"
