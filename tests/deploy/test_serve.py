"""``fedpeft server`` with a config, up to where its processes start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpeft import config as cfg
from fedpeft.cli import simulate
from fedpeft.cli.launch import new_config, resumed_config
from fedpeft.cli.main import main
from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.keys import make_device_key
from fedpeft.engines.deploy.registry import Registry
from fedpeft.engines.deploy.whereabouts import Whereabouts, held

STORED = ["engine=deploy", "engine.address=127.0.0.1:9123", "engine.state_dir=/kept", "engine.wait_for=2"]


def stored_run(folder: Path, overrides: list[str]) -> Path:
    config = new_config({**cfg.compose(overrides), "run_dir": str(folder / "run")})
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "run"


def resumed(run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    given = [*overrides, f"resume={run_dir}"]
    return resumed_config(run_dir, cfg.compose(given), given)["engine"]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be handed to Hydra."""
    seen: list[list[str]] = []
    monkeypatch.setattr(simulate, "main", lambda argv: seen.append(list(argv)) or 0)
    return seen


def register(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        key = make_device_key(folder / f"{number}.key", name=f"d{number}", client_id=number)
        Registry.load(folder).add(f"d{number}", key)


def test_registered_devices_are_the_clients(
    tmp_path: Path, jobs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    register(tmp_path / "state", 3)
    own = f"server.state_dir={tmp_path / 'state'}"
    assert main(["server", own, "cohort_size=8", "num_clients=20"]) == 0
    assert jobs.pop() == ["engine=deploy", f"engine.state_dir={tmp_path / 'state'}", "cohort_size=8", "num_clients=20"]
    assert main(["server", own]) == 0
    assert {"num_clients=3", "cohort_size=3"} <= set(jobs.pop())
    assert "3 registered devices: num_clients=3, cohort_size=3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [(["-m", "rounds=1,2"], "one federation at a time"), (["engine=ray"], "has an engine of its own")],
)
def test_what_a_server_cannot(words: list[str], said: str, jobs: list[list[str]], capsys: Any) -> None:
    assert main(["server", *words]) == 2
    assert said in capsys.readouterr().err
    assert jobs == []


def test_without_a_device_it_says_how_to_register_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", f"server.state_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"no device is registered in {tmp_path} (run: fedpeft server add-device NAME --state-dir {tmp_path})" in said


def test_a_state_folder_is_one_servers(tmp_path: Path) -> None:
    """Two on one database would end each other's runs."""
    Whereabouts(address="127.0.0.1:8000", run_dir="runs/x", pid=4711).write(tmp_path)
    with (
        held(tmp_path),
        pytest.raises(ConfigError, match=r"in use by the server at 127\.0\.0\.1:8000 \(process 4711\)"),
        held(tmp_path),
    ):
        pass
    with held(tmp_path):
        pass


def test_a_resumed_server_goes_on_where_devices_know_it(tmp_path: Path) -> None:
    run_dir = stored_run(tmp_path, STORED)
    engine = resumed(run_dir, ["engine=deploy"])
    assert (engine["address"], engine["state_dir"], engine["wait_for"]) == ("127.0.0.1:9123", "/kept", 2)


def test_what_is_given_beside_resume_counts(tmp_path: Path) -> None:
    engine = resumed(stored_run(tmp_path, STORED), ["engine=deploy", "engine.address=127.0.0.1:9200"])
    assert (engine["address"], engine["state_dir"]) == ("127.0.0.1:9200", "/kept")


@pytest.mark.parametrize(
    ("stored", "wanted", "command"),
    [(STORED, "engine=inprocess", "fedpeft server"), ([], "engine=deploy", "fedpeft simulate")],
    ids=["real as simulated", "simulated as real"],
)
def test_real_and_simulated_devices_do_not_stand_in_for_each_other(
    tmp_path: Path, stored: list[str], wanted: str, command: str
) -> None:
    run_dir = stored_run(tmp_path, stored)
    with pytest.raises(ConfigError, match=f"continue it with: {command} resume={run_dir}"):
        resumed(run_dir, [wanted])
