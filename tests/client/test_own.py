"""A real device's own file takes the place of the run's data and changes nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_files
import pytest

from fedpeft import __version__
from fedpeft import config as cfg
from fedpeft.client.building import build_runtime
from fedpeft.client.examples import names_in
from fedpeft.client.own import DEPLOYED, HeldElsewhere, OwnData
from fedpeft.client.runtime import Runtime
from fedpeft.client.state import PersonalState
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.core.wire import Instruction


@pytest.fixture(scope="module")
def config(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from fedpeft.cli.launch import new_config

    folder = tmp_path_factory.mktemp("own")
    return new_config({**cfg.compose([*toy, "task.client_test_fraction=0.2"]), "run_dir": str(folder / "run")})


@pytest.fixture(scope="module")
def simulated(config: dict[str, Any]) -> Runtime:
    return build_runtime(config)


@pytest.fixture(scope="module")
def files(simulated: Runtime, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return own_files.write_files(simulated, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def deployed(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, DEPLOYED: {**names_in(config), "version": __version__}}


def test_a_device_computes_what_its_simulated_twin_does(
    simulated: Runtime, deployed: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    """Same tensors bit for bit, same loss, same test rows, same identity, from a copy of its rows alone."""
    for client_id in (0, 4):
        own = OwnData(path=str(files[client_id]), client_id=client_id)
        real = build_runtime(deployed, None, own)
        assert real.identity == simulated.identity
        assert real.num_train_examples(client_id) == simulated.num_train_examples(client_id)
        got = []
        for runtime in (simulated, real):
            order = Instruction(tensors=runtime.initial, server_round=3, identity=runtime.identity, config={})
            state = PersonalState(tmp_path / f"{client_id}-{runtime is real}")
            got.append((runtime.train(client_id, order, state, 0), runtime.evaluate_client(client_id, order, state)))
        (one, scores), (two, real_scores) = got
        assert one.result.loss == two.result.loss
        assert all(np.array_equal(one.tensors[key], two.tensors[key]) for key in one.tensors)
        assert any(not np.array_equal(two.tensors[key], real.initial[key]) for key in two.tensors)
        assert scores is not None
        assert real_scores is not None
        assert (scores.loss, *scores.correct, *scores.count) == (
            real_scores.loss, *real_scores.correct, *real_scores.count,
        )  # fmt: skip


def test_a_device_holds_nobody_elses_examples(deployed: dict[str, Any], files: list[Path]) -> None:
    real = build_runtime(deployed, None, OwnData(path=str(files[1]), client_id=1))
    with pytest.raises(ConfigError, match="client 2's examples are not here: this device is client 1"):
        real.client_rows(2)


def test_the_server_holds_nobodys_examples_and_evaluates_as_ever(simulated: Runtime, deployed: dict[str, Any]) -> None:
    server = build_runtime(deployed)
    assert isinstance(server.examples.partition, HeldElsewhere)
    assert server.identity == simulated.identity
    with pytest.raises(ConfigError, match="client 0's examples are on its device"):
        server.client_rows(0)
    ours, theirs = (runtime.evaluate_shard(runtime.initial, 0) for runtime in (server, simulated))
    assert (ours.loss, *ours.correct) == (theirs.loss, *theirs.correct)


def test_labels_have_the_servers_numbers_even_where_a_device_has_one_class(
    deployed: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "w1 w2", "label": "good", "group": "east"}\n' * 3)
    real = build_runtime(deployed, None, OwnData(path=str(tmp_path / "own.jsonl"), client_id=0))
    assert real.examples.label_names == ("bad", "good")
    assert real.examples.task.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "w1", "label": "ugly", "group": "east"}, "has classes"),
        ({"text": "w1", "label": "good", "group": "moon"}, "has groups .'moon'. that the server does not know"),
        ({"text": "w1", "label": "good"}, "group"),
        ({"texts": "w1", "label": "good", "group": "east"}, "text"),
    ],
)
def test_a_file_that_does_not_fit_the_run_is_one_line(
    deployed: dict[str, Any], tmp_path: Path, row: dict[str, str], why: str
) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=why) as caught:
        build_runtime(deployed, None, OwnData(path=str(tmp_path / "own.jsonl"), client_id=0))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_joined_is_refused(deployed: dict[str, Any], files: list[Path], tmp_path: Path) -> None:
    own = OwnData(path=str(files[0]), client_id=0)
    with pytest.raises(ConfigError, match="this run is a simulation"):
        own.applied({key: value for key, value in deployed.items() if key != DEPLOYED})
    with pytest.raises(ConfigError, match="this device is client 6, but the run's last client is 5"):
        replace(own, client_id=6).applied(deployed)
    with pytest.raises(ConfigError, match=f"the server runs fedpeft 9.9, this device {__version__}"):
        own.applied({**deployed, DEPLOYED: {**deployed[DEPLOYED], "version": "9.9"}})
    for bad in ("../../etc", "a/b", "", ".", "a" * 65, None):
        with pytest.raises(ConfigError, match="run_id must be letters and digits"):
            own.applied({**deployed, "run_id": bad})
    with pytest.raises(DataError, match="does not exist"):
        OwnData(path=str(tmp_path / "none.jsonl"), client_id=0)
