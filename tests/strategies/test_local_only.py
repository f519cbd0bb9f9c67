"""Local-only training: nothing travels, and every client goes on from its own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from worlds import update, world

from fedpeft.cli.launch import launch
from fedpeft.strategies.local_only import LocalOnly

Make = Callable[..., dict[str, Any]]


def test_the_servers_model_stays() -> None:
    strategy, here = LocalOnly(), world(LocalOnly)
    here.enter(strategy)
    replies = [update(strategy, here, client_id) for client_id in range(3)]
    assert all(reply.tensors == {} for reply in replies)
    after = strategy.aggregate(here.tensors, replies)
    assert all(after[key].tobytes() == here.tensors[key].tobytes() for key in here.tensors)


def test_clients_learn_alone(toy_config: Make) -> None:
    """A client's accuracy on its own examples rises over rounds in which not a tensor travels."""
    config = toy_config(
        "strategy=local_only", "rounds=6", "cohort_size=6", "client.local_steps=12", "evaluate.clients_every=1"
    )
    assert launch(config, []) == 0
    run_dir = Path(config["run_dir"])
    rows = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    clients = [json.loads(line) for line in (run_dir / "clients.jsonl").read_text().splitlines()]
    assert rows[-1]["eval"]["client_accuracy_mean"] > rows[0]["eval"]["client_accuracy_mean"] + 0.1
    assert rows[-1]["eval"]["accuracy"] == rows[0]["eval"]["accuracy"]
    assert {row["adapter_bytes"] for row in clients} == {0}
    kept = [load_file(sorted(folder.iterdir())[-1]) for folder in (run_dir / "checkpoints" / "clients").iterdir()]
    assert len({state["base_model.model.classifier.weight"].tobytes() for state in kept}) == len(kept) == 6
