"""End to end: the same adapter whatever the engine, the number of workers, or a crash in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from fedpeft.cli.launch import launch

Make = Callable[..., dict[str, Any]]


def run(config: dict[str, Any]) -> Path:
    assert launch(config, []) == 0
    return Path(config["run_dir"])


def adapter(run_dir: Path) -> bytes:
    return (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()


def rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def test_run_learns_and_writes_its_directory(toy_config: Make) -> None:
    run_dir = run(toy_config("rounds=6", "client.local_steps=12", "evaluate.clients_every=3"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["final"]["accuracy"] > 0.8 > summary["initial"]["accuracy"]
    assert [row["round"] for row in rows(run_dir, "rounds.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert len(rows(run_dir, "clients.jsonl")) == 6 * 4
    assert {row["round"] for row in rows(run_dir, "evaluations.jsonl")} == {3, 6}
    assert load_file(run_dir / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("workers", [1, 3])
def test_number_of_workers_changes_nothing(toy_config: Make, workers: int) -> None:
    one = run(toy_config("engine.workers=2", name="two"))
    other = run(toy_config(f"engine.workers={workers}", name="other"))
    assert adapter(one) == adapter(other)
    assert [r["eval"] for r in rows(one, "rounds.jsonl")] == [r["eval"] for r in rows(other, "rounds.jsonl")]
