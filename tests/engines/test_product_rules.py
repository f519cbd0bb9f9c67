"""End to end: rules on products, clients of unequal ranks, and what their saved adapter is to plain peft."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft import config as cfg
from fedpeft.cli.launch import launch, new_config
from fedpeft.client.building import build_runtime
from fedpeft.core.orders import MERGE
from fedpeft.core.types import Tensors
from fedpeft.server.app import model_of
from fedpeft.server.checkpoint import load_checkpoint

Run = Callable[..., dict[str, Any]]
MIXED = "method.ranks={phone: 1, laptop: 4, sbc: 3}"
RULES = {
    "fedit": [],
    "flora": [MIXED],
    "flexlora": [MIXED],
    "florist": [MIXED, "strategy.energy=1"],
    "hetlora": [MIXED, "strategy.gamma=0.5", "strategy.tail_weight=0.3"],
    "fedex_lora": [],
    "lora_fair": [],
}
MERGING = ["flora", "florist", "fedex_lora"]
LEARNS = ["rounds=2", "cohort_size=6", "client.local_steps=24", "client.lr=0.03"]


@pytest.fixture(scope="module")
def run(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function from a rule and further overrides to the config of a finished run; equal ones run once."""

    @cache
    def finish(rule: str, *more: str) -> dict[str, Any]:
        overrides = [*toy, *LEARNS, f"strategy={rule}", *RULES[rule], *more]
        run_dir = tmp_path_factory.mktemp(rule) / "run"
        config = new_config({**cfg.compose(overrides), "run_dir": str(run_dir)})
        assert launch(config, []) == 0
        return config

    return finish


def rows(config: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config["run_dir"]) / name).read_text().splitlines()]


def adapter(config: dict[str, Any]) -> Tensors:
    return load_file(Path(config["run_dir"]) / "adapter" / "adapter_model.safetensors")


def logits_in_peft(config: dict[str, Any], batch: dict[str, Any]) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(config["model"]["path"], num_labels=2)
    model = PeftModel.from_pretrained(base, Path(config["run_dir"]) / "adapter").eval()
    with torch.inference_mode():
        return model(**batch).logits


@pytest.mark.parametrize("rule", RULES)
def test_the_saved_adapter_is_the_model_that_the_run_evaluated(run: Run, rule: str) -> None:
    """Plain peft and the saved adapter, none of our code around the model: the run's own loss and accuracy."""
    import torch

    config = run(rule)
    summary = json.loads((Path(config["run_dir"]) / "summary.json").read_text())
    assert {row["outcome"] for row in rows(config, "clients.jsonl")} == {"ok"}
    data = build_runtime(config).examples
    batch = dict(data.eval_task.collate(data.eval_rows))
    labels = batch.pop("labels")
    logits = logits_in_peft(config, batch)
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert loss == pytest.approx(summary["final"]["loss"], rel=1e-4)
    assert float((logits.argmax(-1) == labels).float().mean()) == pytest.approx(summary["final"]["accuracy"], abs=1e-6)
    assert summary["final"]["accuracy"] > 0.7 > summary["initial"]["accuracy"]


@pytest.mark.parametrize("rule", MERGING)
def test_a_checkpoint_holds_what_joins_the_base(run: Run, rule: str) -> None:
    """The factors to merge are in the state, and the saved adapter's rank is the global one with theirs."""
    config = run(rule)
    checkpoint = load_checkpoint(Path(config["run_dir"]) / "checkpoints")
    assert checkpoint is not None
    model = model_of(config, checkpoint)
    ranks = {key: value.shape[0] for key, value in model.items() if key.endswith("lora_A.weight")}
    own = {rank for key, rank in ranks.items() if not key.startswith(MERGE)}
    merged = max(rank for key, rank in ranks.items() if key.startswith(MERGE))
    assert own == {4 if MIXED in RULES[rule] else 2}
    saved = {value.shape[0] for key, value in adapter(config).items() if key.endswith("lora_A.weight")}
    assert saved == {own.pop() + merged}


@pytest.mark.parametrize("rule", ["flora", "hetlora"])
def test_a_resumed_run_repeats_itself(run: Run, rule: str) -> None:
    """Round 2 from the checkpoint of round 1 gives the same bits as both in one go."""
    whole, half = run(rule), run(rule, "rounds=1")
    assert launch({**half, "resume": half["run_dir"], "rounds": 2}, ["rounds=2"]) == 0
    one, other = adapter(whole), adapter(half)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("rule", ["flora", "flexlora", "florist"])
def test_bytes_follow_the_ranks_that_devices_train_at(run: Run, rule: str) -> None:
    """A rank is 64 floats in each of 4 modules, 1024 bytes; what was merged on the way down does not come back."""
    by_device = {row["device"]: row["adapter_bytes"] for row in rows(run(rule), "clients.jsonl")}
    assert {size for device, size in by_device.items() if device.startswith("phone")} == {1024}
    assert {size for device, size in by_device.items() if device.startswith("laptop")} <= {4 * 1024}
    assert len(set(by_device.values())) > 1
    assert all(row["adapter_bytes"] == 1024 * row["rank"] for row in rows(run(rule), "clients.jsonl"))


def test_ranks_are_pruned_where_tails_shrink(run: Run) -> None:
    """Rank 4 and 3 become 2 and 1 at gamma 0.5; a tail weight of 0.3 shrinks what the first round made to grow."""
    config = run("hetlora", "rounds=4")
    checkpoint = load_checkpoint(Path(config["run_dir"]) / "checkpoints")
    assert checkpoint is not None
    assert np.size(checkpoint.state["pruned.clients"]) > 0
    sizes = {row["round"]: 0 for row in rows(config, "clients.jsonl")}
    for row in rows(config, "clients.jsonl"):
        sizes[row["round"]] += row["adapter_bytes"]
    assert sizes[4] < sizes[1]
    assert all(row["adapter_bytes"] == 1024 * row["rank"] for row in rows(config, "clients.jsonl"))
