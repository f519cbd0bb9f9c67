"""Whole runs with codecs: fewer bytes on the wire, the same result on one worker or three, residuals that resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft.cli.launch import launch
from fedpeft.core.errors import ConfigError

Make = Callable[..., dict[str, Any]]
WIDE = ("method.rank=8", "rounds=2", "client.local_steps=2")
"""A rank at which factors outweigh headers."""


def run(config: dict[str, Any]) -> Path:
    assert launch(config, []) == 0
    return Path(config["run_dir"])


def adapter(run_dir: Path) -> dict[str, np.ndarray]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


def clients(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "clients.jsonl").read_text().splitlines()]


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum((a[key] - b[key]) ** 2.0) for key in a)))


@pytest.mark.parametrize("codec", ["float16", "int8", "int4", "topk", "topk_int8", "low_rank"])
def test_fewer_bytes_go_up_and_the_model_still_learns(toy_config: Make, codec: str) -> None:
    """The adapter stays nearer to the uncompressed run's than that one is to where both began."""
    plain = run(toy_config(*WIDE, name="plain"))
    start = run(toy_config(*WIDE, "client.lr=1e-12", name="start"))
    packed = run(toy_config(*WIDE, f"codec={codec}", name="packed"))
    assert [row["outcome"] for row in clients(packed)] == ["ok"] * 8
    assert sum(r["bytes_up"] for r in clients(packed)) < sum(r["bytes_up"] for r in clients(plain))
    assert sum(r["bytes_down"] for r in clients(packed)) == sum(r["bytes_down"] for r in clients(plain))
    assert distance(adapter(packed), adapter(plain)) < distance(adapter(plain), adapter(start))
    kept = sorted((packed / "checkpoints" / "clients").glob("*/*"))
    assert bool(kept) == (codec in ("topk", "topk_int8", "low_rank"))


def test_residuals_depend_on_nothing_but_the_config(toy_config: Make) -> None:
    one = run(toy_config(*WIDE, "codec=topk_int8", "engine.workers=1", name="one"))
    three = run(toy_config(*WIDE, "codec=topk_int8", "engine.workers=3", name="three"))
    assert distance(adapter(one), adapter(three)) == 0


def test_a_resumed_run_finds_its_residuals(toy_config: Make) -> None:
    whole = run(toy_config("rounds=4", "num_clients=4", "codec=topk", name="whole"))
    run(toy_config("rounds=2", "num_clients=4", "codec=topk", name="half"))
    half = toy_config("num_clients=4", "codec=topk", name="half")
    assert launch({**half, "resume": half["run_dir"], "rounds": 4}, ["rounds=4"]) == 0
    assert distance(adapter(Path(half["run_dir"])), adapter(whole)) == 0


def test_unsound_pairs_are_refused_by_name(toy_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from fedpeft import config as cfg

    stock = toy_config("strategy._target_=flwr.serverapp.strategy.FedAvg", "codec=int8")
    stock["strategy"] = {"_target_": "flwr.serverapp.strategy.FedAvg"}
    with pytest.raises(ConfigError, match=r"strategy FedAvg is Flower's own .* codec int8 changes them"):
        cfg.check(stock)
    with pytest.raises(ConfigError, match=r"strategy FFALoRA needs LoRA factors A and B .* method LoRA has none"):
        cfg.check(toy_config("strategy=ffa_lora", "method=dora"))
    with pytest.raises(
        ConfigError, match=r"strategy FedAvg needs one rank for all clients, method.ranks gives \[1, 2\]"
    ):
        cfg.check(toy_config("method.ranks={phone:1}"))
