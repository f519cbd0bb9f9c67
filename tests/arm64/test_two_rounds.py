"""An ARM64 device in a federation: Debian's and the index's own builds for it, emulated on this machine.

    python -m pytest -m slow tests/arm64 -s

prints how long each part took. Emulation shows that wheels, protocol and results are right; it says nothing of a
board's speed or memory. FEDPEFT_ARM64_ROOT names the folder that keeps the ARM64 system between two runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import arm64_root
import numpy as np
import psutil
import pytest
from real_federation import ENVIRONMENT, Federation, federation, smaller, write_own_files
from safetensors.numpy import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ARM, NATIVE = 0, 1
ROUNDS = 2
_END_S = 60.0


@pytest.fixture(scope="module")
def board(pytestconfig: pytest.Config) -> arm64_root.Arm64Root:
    """The emulated system; made where it is not there yet."""
    given = os.environ.get("FEDPEFT_ARM64_ROOT")
    assert pytestconfig.cache is not None
    began = time.monotonic()
    try:
        made = arm64_root.made(Path(given) if given else Path(pytestconfig.cache.mkdir("arm64")))
    except arm64_root.Missing as reason:
        pytest.skip(str(reason))
    print(f"\nroot: {time.monotonic() - began:.1f} s")
    return made


@pytest.fixture(scope="module")
def done(toy: list[str], board: arm64_root.Arm64Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A run that is over, of one emulated client and a native one, beside the same config's simulation."""
    folder = tmp_path_factory.mktemp("arm64")
    kept = [one for one in toy if not one.startswith("rounds=")]
    overrides = [*smaller(kept, clients=2), f"rounds={ROUNDS}"]
    seen = [tmp_path_factory.getbasetemp()]
    with federation(folder, write_own_files(overrides, folder), overrides) as made:
        quiet = ["engine.workers=1", "display=none", "report=false"]
        simulated = made.command("simulate", *overrides, *quiet, f"run_dir={folder / 'simulated'}")
        assert simulated.returncode == 0, simulated.stderr
        began = time.monotonic()
        made.start_server("report=false")
        made.start_client(NATIVE)
        command = board.command("-m", "fedpeft.cli.main", folders=seen, more=ENVIRONMENT)
        made.start_client(ARM, command=command)
        with emulated(made, f"client-{ARM}"):
            wait_for_torch(made)
            print(f"torch in the emulated client: {time.monotonic() - began:.1f} s")
            assert made.wait_until_done(900) == 0, made.everything()
            print(f"run over: {time.monotonic() - began:.1f} s")
            print(made.log(f"client-{ARM}"))
        yield made


@contextmanager
def emulated(made: Federation, name: str) -> Iterator[None]:
    """End an emulated process afterwards: proot itself does not heed to be asked, what it runs does."""
    proot = psutil.Process(made.processes[name].pid)
    try:
        yield
    finally:
        tree = proot.children(recursive=True)
        for child in proot.children():
            child.terminate()
        _, left = psutil.wait_procs([proot, *tree], timeout=_END_S)
        assert left == [], f"still there: {left}"


def wait_for_torch(made: Federation, seconds: float = 600) -> None:
    """Wait until the emulated client has imported everything; not longer than it, or the server, lives."""
    until = time.monotonic() + seconds
    while "waiting for a run" not in made.log(f"client-{ARM}"):
        for name in ("server", f"client-{ARM}"):
            assert made.processes[name].poll() is None, f"{name} has ended:\n{made.everything()}"
        assert time.monotonic() < until, made.everything()
        time.sleep(0.2)


def rows(made: Federation, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (made.run_dir / name).read_text().splitlines()]


def test_the_system_is_an_arm64_one(board: arm64_root.Arm64Root) -> None:
    asked = "import platform, sysconfig, torch; print(platform.machine(), sysconfig.get_platform(), torch.__version__)"
    told = subprocess.run(board.command("-c", asked, more=ENVIRONMENT), capture_output=True, text=True, timeout=600)
    assert told.stdout.split()[:2] == ["aarch64", "linux-aarch64"], told.stderr
    assert told.stdout.split()[2].startswith("2.10.0")
    assert not list(board.site.glob("nvidia*")), "torch's wheels for ARM64 pull CUDA since 2.11"


def test_its_rounds_are_ok(done: Federation) -> None:
    found = {(row["round"], row["client_id"]): row for row in rows(done, "clients.jsonl")}
    assert found.keys() == {(number + 1, client) for number in range(ROUNDS) for client in (ARM, NATIVE)}
    assert {key: row["outcome"] for key, row in found.items() if row["outcome"] != "ok"} == {}, done.everything()
    assert all(float(str(row["peak_memory_mb"])) > 100 for row in found.values())
    print({key: row["virtual_s"] for key, row in found.items()})


def test_the_run_is_finished(done: Federation) -> None:
    assert json.loads((done.run_dir / "summary.json").read_text())["status"] == "finished"
    assert [row["num_replies"] for row in rows(done, "rounds.jsonl")] == [2] * ROUNDS
    assert "Traceback" not in done.everything()


def test_what_it_learnt_is_what_the_simulation_learns(done: Federation) -> None:
    """The processors round differently, by 3e-7 in these tensors when it was measured; a step moves them by 1e-2."""
    names = (done.folder / name / "adapter/adapter_model.safetensors" for name in ("run", "simulated"))
    real, simulated = map(load_file, names)
    assert real.keys() == simulated.keys()
    for name, tensor in simulated.items():
        np.testing.assert_allclose(real[name], tensor, rtol=0, atol=1e-5, err_msg=name)
