"""A config over the network is no way to run code on a client."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.app import DEFAULT_ALLOW, build_app
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.engines.flower_private import set_identity
from fedpeft.engines.grid import handle

LORA = {"_target_": "fedpeft.methods.lora.LoRA"}


def evil(marker: Path) -> dict[str, dict[str, Any]]:
    """Return nodes that would make a file, each by another road."""
    make = {"_target_": "builtins.open", "file": str(marker), "mode": "w"}
    return {
        "builtins": make,
        "os": {"_target_": "os.mkdir", "path": str(marker)},
        "an allowed module's import": {
            "_target_": "fedpeft.methods.lora.json.codecs.open",
            "filename": str(marker),
            "mode": "w",
        },
        "another part's import": {"_target_": "fedpeft.core.paths.os.mkdir", "path": str(marker)},
        "a function of ours": {"_target_": "fedpeft.server.files.write_json", "path": str(marker), "value": 1},
        "a class of ours elsewhere": {"_target_": "fedpeft.report.trackers.TensorBoardTracker", "run_dir": str(marker)},
        "a class that an allowed module imports": {"_target_": "fedpeft.methods.lora.Path", "_args_": [str(marker)]},
        "a nested target": {**LORA, "rank": make},
        "a target in a list": {**LORA, "target_modules": ["query", make]},
        "a target made by an interpolation": {
            **LORA,
            "rank": f"${{oc.create:{{_target_: builtins.open, file: '{marker}', mode: w}}}}",
        },
        "an interpolation that reads the environment": {**LORA, "target_modules": ["${oc.env:HOME}"]},
        "an interpolated key": {**LORA, "${oc.env:HOME}": 1},
        "a prefix without a dot": {"_target_": "fedpeft.methods_of_mine.X"},
        "no path": {"_target_": "open", "file": str(marker), "mode": "w"},
        "a module": {"_target_": "fedpeft.methods.lora"},
        "a missing class": {"_target_": "fedpeft.methods.lora.Nothing"},
        "a relative path": {"_target_": "fedpeft.methods..lora.LoRA"},
    }


@pytest.mark.parametrize("road", list(evil(Path("x"))))
def test_only_classes_of_allowed_parts_are_built(road: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(ConfigError, match=r"not allowed here|is an interpolation"):
        cfg.build(evil(marker)[road], DEFAULT_ALLOW)
    assert not marker.exists()


@pytest.mark.parametrize(
    "road", ["builtins", "a nested target", "a target made by an interpolation", "another part's import"]
)
def test_without_a_list_the_same_roads_lead_there(road: str, tmp_path: Path) -> None:
    """The test above can fail."""
    with contextlib.suppress(ConfigError):
        cfg.build(evil(tmp_path / "marker")[road])
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("group", ["method", "partition", "fleet"])
def test_every_config_that_a_client_builds_is_allowed(group: str) -> None:
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        config = cfg.compose([f"{group}={path.stem}", "num_clients=20"])
        assert cfg.build(config[group], DEFAULT_ALLOW) is not None


@pytest.mark.parametrize("group", ["method", "partition", "fleet"])
def test_a_client_refuses_and_runs_nothing(group: str, toy: list[str], tmp_path: Path) -> None:
    """The default app, asked who it is: to answer, a client builds its method, its share of the data and its device."""
    marker = tmp_path / "marker"
    config = new_config({**cfg.compose(toy), "run_dir": str(tmp_path / "run")})
    text = cfg.to_json({**config, group: evil(marker)["builtins"]})
    set_identity(run_id=1, node_id=1)
    message = Message(RecordDict(), dst_node_id=7, message_type="query.hello")
    context = Context(
        run_id=1, node_id=7, node_config={"partition-id": 0}, state=RecordDict(), run_config={"fedpeft-config": text}
    )
    reply, _ = handle(build_app(), (message, context))
    assert reply.has_error()
    assert "ConfigError: _target_ builtins.open is not allowed here" in reply.error.reason
    assert not marker.exists()


def test_an_operator_may_allow_more(tmp_path: Path) -> None:
    assert cfg.build({"_target_": "fractions.Fraction", "numerator": 1}, ["fractions."]) == 1
    with pytest.raises(ConfigError, match=r"allowed are classes under fractions\."):
        cfg.build(LORA, ["fractions."])
    with pytest.raises(ConfigError, match="not allowed here"):
        cfg.build(LORA, [])
