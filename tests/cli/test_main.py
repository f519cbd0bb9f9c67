"""The command line as a person meets it: exit codes, one line for each mistake, nothing lost."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedpeft.cli.main import main
from fedpeft.core.paths import conf_dir

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("here")
Simulate = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def simulate(toy: list[str], said: Simulate) -> Simulate:
    """Return a function from overrides of the small federation to the exit code and the lines on stderr."""

    def run(*overrides: str) -> tuple[int, list[str]]:
        base = [] if any(one.startswith("resume=") for one in overrides) else [*toy, "rounds=1", "run_dir=run"]
        return said("simulate", *base, *overrides)

    return run


def rows(run_dir: str, name: str = "rounds.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(run_dir) / name).read_text().splitlines()]


# -- commands -------------------------------------------------------------------------------------------


def test_no_command_shows_usage_and_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: fedpeft" in capsys.readouterr().out


def test_an_unknown_command_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulat"]) == 2
    assert (
        capsys.readouterr().err
        == "fedpeft: no command 'simulat': there are simulate, server, client, report, table, devices, privacy, data\n"
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ("simulate", "report", "devices", "data"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from fedpeft import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedpeft {__version__}\n"


def test_help_of_simulate_lists_every_group_and_member(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for folder in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "device_profile"):
        line = next(line for line in lines if line.split()[:1] == [folder.name])
        assert all(member.stem in line for member in folder.glob("*.yaml"))


def test_errors_of_other_commands_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "absent"]) == 1
    assert main(["data", "fetch", "nope"]) == 1
    assert main(["devices", "show", "nope"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("fedpeft: ") for line in lines)


# -- wrong configurations -------------------------------------------------------------------------------


def test_all_problems_are_told_in_one_go(simulate: Simulate) -> None:
    """Two that Hydra refuses, and five values that are wrong; nothing is written."""
    code, lines = simulate(
        "rondes=3",
        "strategy=nope",
        "method.rank=0",
        "cohort_size=7",
        "client.lr=-1",
        "display=loud",
        "engine.workers=0",
    )
    assert code == 2
    assert sorted(lines) == sorted([
        "fedpeft: rondes=3: Could not override 'rondes'. Did you mean rounds or round?",
        "fedpeft: strategy=nope: In 'config': Could not find 'strategy/nope' Available options in 'strategy': "
            + " ".join(sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))),
        "fedpeft: rank must be in 1..1024, got 0 (set method.rank)",
        "fedpeft: cohort_size must be at most num_clients (6), got 7",
        "fedpeft: client.lr must be a positive number, got -1",
        "fedpeft: display must be one of auto, plain, none, got 'loud'",
        "fedpeft: engine.workers must be auto or a whole number >= 1, got 0",
    ])  # fmt: skip
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("override", "code", "line"),
    [
        ("num_clients=321", 2, "num_clients must be at most the 320 training examples, got 321"),
        (
            "method.target_modules=[foo,query]",
            2,
            "BertForSequenceClassification "
            "has no module foo: it has dense, key, query, value (set method.target_modules)",
        ),
        ("method.rank=33", 2, "rank 33 is above the smallest target's size 32 (set method.rank)"),
        (
            "task.path=empty",
            1,
            "empty holds no data files: expected .parquet, .csv, .jsonl in it, not in folders below it",
        ),
        ("task.label_column=klass", 1, "train.jsonl has no column 'klass': there are text, label, group"),
        ("task.held_out=validation", 1, "has no split 'validation': there are train"),
        ("task.held_out=400", 2, "the held-out part must have 1..399 of 400 rows, got 400"),
        ("model.path=empty", 1, "empty is no model folder: expected a folder with config.json in it"),
        ("strategy._target_=absent_package.Rule", 2, "absent_package.Rule: No module named 'absent_package'"),
        (
            "strategy._target_=builtins.dict",
            2,
            "strategy builtins.dict is a dict, not a flwr.serverapp.strategy.Strategy",
        ),
    ],
)
def test_what_model_and_data_cannot_do_is_one_line(simulate: Simulate, override: str, code: int, line: str) -> None:
    Path("empty").mkdir()
    assert simulate(override)[0] == code
    assert not Path("run/checkpoints").exists()
    # Nothing ran, so that the same run directory takes the corrected command.
    _, lines = simulate(override)
    assert len(lines) == 1
    assert lines[0].startswith("fedpeft: ")
    assert lines[0].endswith(line)


def test_a_client_without_examples_is_refused(simulate: Simulate) -> None:
    code, lines = simulate(
        "partition=dirichlet", "partition.partition_by=label", "partition.alpha=0.001", "partition.min_partition_size=0"
    )
    assert code == 2
    assert "clients without examples" in lines[0]


def test_an_unwritable_run_dir_is_refused(simulate: Simulate) -> None:
    Path("file").write_text("")
    code, lines = simulate("run_dir=file/run")
    assert code == 2
    assert lines == [
        f"fedpeft: run_dir file/run cannot be made: {Path('file').absolute()} is no folder that can be written "
        "(set run_dir)"
    ]


# -- run directories ------------------------------------------------------------------------------------


def test_a_run_is_never_overwritten_and_a_failed_start_may_be_repeated(simulate: Simulate) -> None:
    Path("empty").mkdir()
    assert simulate("task.path=empty")[0] == 1
    assert simulate()[0] == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    code, lines = simulate()
    here = Path("run").absolute()
    assert code == 2
    assert lines == [f"fedpeft: {here} already holds a run: choose another run_dir, or continue it with resume={here}"]
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert not list(Path("run").glob("*.log"))


def test_a_run_dir_in_use_is_refused(simulate: Simulate) -> None:
    Path("run").mkdir()
    with open("run/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, lines = simulate()
    assert code == 1
    assert lines == [
        f"fedpeft: {Path('run').absolute()} is in use by another process (wait for it, or choose another run_dir)"
    ]
    assert not Path("run/config.yaml").exists()


@pytest.mark.parametrize("make", [None, "folder", "config.yaml"])
def test_resume_of_what_is_no_run_is_refused_and_makes_nothing(simulate: Simulate, make: str | None) -> None:
    if make:
        Path("run").mkdir()
    if make == "config.yaml":
        Path("run/config.yaml").write_text("seed: 3\n")
    before = sorted(Path().rglob("*"))
    code, lines = simulate("resume=run")
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("fedpeft: run holds no run to continue: ")
    assert sorted(Path().rglob("*")) == before


def test_resume_goes_on_to_a_later_round(simulate: Simulate) -> None:
    assert simulate()[0] == 0
    assert simulate("resume=run")[0] == 2
    assert simulate("resume=run", "rounds=2", "engine.workers=1")[0] == 0
    assert [row["round"] for row in rows("run")] == [1, 2]
    assert yaml.safe_load(Path("run/config.yaml").read_text())["rounds"] == 2


# -- sweeps and inspection ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["in front", "behind", "between"])
def test_a_sweep_makes_one_run_directory_a_job(simulate: Simulate, order: str, toy: list[str]) -> None:
    words = {"in front": ["-m", "seed=0,1"], "behind": ["seed=0,1", "-m"], "between": ["rounds=1", "-m", "seed=0,1"]}[
        order
    ]
    assert main(["simulate", *toy, "run_dir=sweep", "rounds=1", *words]) == 0
    assert [yaml.safe_load(Path(f"sweep/{job}/config.yaml").read_text())["seed"] for job in (0, 1)] == [0, 1]
    assert len(rows("sweep/0")) == len(rows("sweep/1")) == 1
    assert (
        Path("sweep/0/adapter/adapter_model.safetensors").read_bytes()
        != Path("sweep/1/adapter/adapter_model.safetensors").read_bytes()
    )


def test_a_bad_job_is_refused_before_the_first_starts(simulate: Simulate) -> None:
    code, lines = simulate("-m", "method.rank=2,0", "cohort_size=4,9", "run_dir=sweep")
    assert code == 2
    assert sorted(lines) == [
        "fedpeft: cohort_size must be at most num_clients (6), got 9",
        "fedpeft: rank must be in 1..1024, got 0 (set method.rank)",
    ]
    assert not Path("sweep").exists()


def test_a_job_that_fails_gives_the_sweep_its_exit_code(simulate: Simulate) -> None:
    code, lines = simulate("-m", "num_clients=6,321", "run_dir=sweep")
    assert code == 2
    assert lines == ["fedpeft: num_clients must be at most the 320 training examples, got 321"]
    assert json.loads(Path("sweep/0/summary.json").read_text())["status"] == "finished"


def test_cfg_prints_the_configuration_and_writes_nothing(toy: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "method.rank=5", "--cfg", "job"]) == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert printed["method"]["rank"] == 5
    assert set(yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())) - {"defaults", "hydra"} <= printed.keys()
    assert not list(Path().iterdir())


def test_simulations_run_is_the_same_app(toy: list[str]) -> None:
    """As a process of its own, from another directory, next to a bad one whose problems must look the same."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "simulations" / "run.py"), *toy, "rounds=1", "run_dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/summary.json").read_text())["status"] == "finished"
    bad = subprocess.run([*command, "method.rank=0"], capture_output=True, text=True, env=environment)
    assert bad.returncode == 2
    assert bad.stderr == "fedpeft: rank must be in 1..1024, got 0 (set method.rank)\n"
