"""SLoRA and Fed-SB from end to end: what each stage costs, and that a resumed run is the run that was not stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft import config as cfg
from fedpeft.cli.launch import launch, new_config
from fedpeft.cli.main import main
from fedpeft.core.masks import mask_size
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.types import Tensors
from fedpeft.server.checkpoint import find_checkpoints, load_checkpoint

FED_SB = ("method=lora_sb", "strategy=fed_sb", "evaluate.clients_every=1", "checkpoint.keep=9")
HEAD_BYTES = 4 * (2 * 32 + 2)


def rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]


def test_slora_pays_for_each_stage_what_it_sends(toy_config: Callable[..., dict[str, Any]]) -> None:
    """Four weights of 32 x 32. Stage one: 10 % of each, 102 values of 4 bytes; stage two: rank 2, (32 + 32) x 2 values.

    Texts cut to 6 tokens are all of one length, so that a client's rounds differ by their stage alone: forming the
    gradients of whole weights takes longer than those of factors.
    """
    settings = ("rounds=4", "method.density=0.1", "model.max_length=6", "devices.jitter=false")
    config = toy_config("method=slora", "strategy=slora", *settings)
    assert launch(config, []) == 0
    run_dir = Path(config["run_dir"])
    clients = rows(run_dir, "clients")
    assert mask_size((32, 32), 0.1) == 102
    for row in clients:
        adapter = 4 * 4 * (102 if row["round"] <= 2 else (32 + 32) * 2)
        assert (row["adapter_bytes"], row["head_bytes"]) == (adapter, HEAD_BYTES)
        assert 0 < row["bytes_up"] - adapter - HEAD_BYTES < 3000, "names, headers and metrics"
    seconds = {(row["client_id"], row["round"]): row["virtual_s"]["compute"] for row in clients}
    both = {one for one, r in seconds if r <= 2} & {one for one, r in seconds if r > 2}
    assert len(both) >= 2
    for one in both:
        slow = {s for (k, r), s in seconds.items() if k == one and r <= 2}
        fast = {s for (k, r), s in seconds.items() if k == one and r > 2}
        assert len(slow) == len(fast) == 1
        assert min(slow) > max(fast)
    stages = [row["strategy"] for row in rows(run_dir, "rounds")]
    assert [one["stage"] for one in stages] == [1, 2, 2, 2]
    assert 0 < stages[-1]["svd_dropped"] < 1
    assert stages[-1]["svd_dropped"] ** 2 + stages[-1]["svd_cosine"] ** 2 == pytest.approx(1)


def test_slora_begins_stage_two_with_the_factors_of_stage_one(toy_config: Callable[..., dict[str, Any]]) -> None:
    """Resumed after the change, the run ends as one that was not stopped; values are zero and the adapter is small."""
    settings = ("method=slora", "strategy=slora", "rounds=3", "method.density=0.1", "checkpoint.keep=9")
    config = toy_config(*settings)
    assert launch(config, []) == 0
    run_dir = Path(config["run_dir"])
    again = run_dir.parent / "again"
    shutil.copytree(run_dir, again)
    shutil.rmtree(again / "checkpoints" / "round-0003")
    second = load_checkpoint(again / "checkpoints")
    assert second is not None
    assert second.state["switched"] == 1
    assert all(second.tensors[pair.b].any() for pair in lora_pairs(second.tensors))
    assert not any(value.any() for key, value in second.tensors.items() if key.endswith("sparse_values"))
    assert main(["simulate", f"resume={again}"]) == 0
    assert last_tensors(again) == last_tensors(run_dir)
    saved = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    assert {value.shape for key, value in saved.items() if "lora_A" in key} == {(2, 32)}


@pytest.fixture(scope="module")
def whole(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rounds of Fed-SB in one go; the first measures gradients."""
    run_dir = tmp_path_factory.mktemp("sb") / "run"
    config = new_config({**cfg.compose([*toy, *FED_SB, "rounds=4"]), "run_dir": str(run_dir)})
    assert launch(config, []) == 0
    return run_dir


def last_tensors(run_dir: Path) -> bytes:
    return (find_checkpoints(run_dir / "checkpoints")[-1][1] / "tensors.safetensors").read_bytes()


def states(run_dir: Path) -> dict[str, bytes]:
    folder = run_dir / "checkpoints" / "clients"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.safetensors"))}


def assert_equal_runs(one: Path, other: Path) -> None:
    assert last_tensors(one) == last_tensors(other)
    assert states(one) == states(other)
    for name, columns in (
        ("rounds", ("round", "eval", "train_loss", "bytes_up", "bytes_down", "dropped", "eval_dropped", "strategy")),
        ("clients", ("round", "client_id", "bytes_up", "bytes_down", "virtual_s", "outcome")),
    ):
        tables = [[[row[column] for column in columns] for row in rows(run, name)] for run in (one, other)]
        assert tables[0] == tables[1]


def test_fed_sb_sends_a_and_b_once(whole: Path) -> None:
    """Four weights of 32 x 32 at rank 2: A and B are 4 x 4 x (64 + 64) = 2048 bytes, R is 4 x 4 x 4 = 64.

    Round 1 returns factors; then only R and the head go up, and A and B down to whoever was not there before.
    """
    factors, core, seen = 2048, 64, set[int]()
    for row in rows(whole, "clients"):
        first = row["round"] == 1
        assert row["outcome"] == "ok"
        assert row["adapter_bytes"] == (factors if first else core)
        assert row["head_bytes"] == (0 if first else HEAD_BYTES)
        fresh = not first and row["client_id"] not in seen
        payload = factors + core if first else core + HEAD_BYTES + factors * fresh
        assert 0 < row["bytes_down"] - payload < 3200
        seen |= set() if first else {row["client_id"]}
    table = rows(whole, "rounds")
    assert [row["eval_dropped"] for row in table] == [{}] * 4, "clients evaluate with the A and B that they hold"
    assert table[0]["eval"]["loss"] == json.loads((whole / "summary.json").read_text())["initial"]["loss"]
    assert table[0]["train_loss"] == pytest.approx(table[0]["eval"]["loss"], abs=0.05)
    assert table[3]["eval"]["loss"] != table[0]["eval"]["loss"]
    assert table[3]["strategy"] == {"holders": len(seen)}


def held(run_dir: Path, client_id: int) -> Tensors:
    newest = sorted((run_dir / "checkpoints" / "clients" / f"client-{client_id:06d}").glob("*"))[-1]
    return {key: value for key, value in load_file(newest).items() if key.startswith("held.")}


def test_what_clients_hold_is_what_the_server_has(whole: Path) -> None:
    tensors = load_file(find_checkpoints(whole / "checkpoints")[-1][1] / "tensors.safetensors")
    fixed = {f"held.{key}" for pair in lora_pairs(tensors) for key in (pair.a, pair.b)}
    told = {row["client_id"] for row in rows(whole, "clients") if row["round"] > 1}
    assert len(told) >= 4
    for client_id in told:
        mine = held(whole, client_id)
        assert set(mine) == fixed
        assert all(np.array_equal(value, tensors[key.removeprefix("held.")]) for key, value in mine.items())


@pytest.mark.parametrize("server_round", [1, 2, 3])
def test_fed_sb_resumed_from_any_round_is_the_same_run(whole: Path, tmp_path: Path, server_round: int) -> None:
    """The checkpoint is older than what the clients hold: they are told again what they know already."""
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    for late, folder in find_checkpoints(again / "checkpoints"):
        if late > server_round:
            shutil.rmtree(folder)
    assert main(["simulate", f"resume={again}"]) == 0
    assert_equal_runs(again, whole)


def test_a_run_that_was_told_to_go_further_is_the_same_run(toy: list[str], whole: Path, tmp_path: Path) -> None:
    config = new_config({**cfg.compose([*toy, *FED_SB, "rounds=2"]), "run_dir": str(tmp_path / "run")})
    assert launch(config, []) == 0
    assert main(["simulate", f"resume={tmp_path / 'run'}", "rounds=4"]) == 0
    # The last round of two was evaluated on the clients either way: clients_every is 1.
    assert_equal_runs(tmp_path / "run", whole)


def test_a_client_that_lost_what_it_held_is_sent_it_again(whole: Path, tmp_path: Path) -> None:
    """All files that clients kept are gone: round 5 costs those who were holders, round 6 has them back."""
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    for path in (again / "checkpoints" / "clients").glob("*/*"):
        path.unlink()
    assert main(["simulate", f"resume={again}", "rounds=7"]) == 0
    late = [row for row in rows(again, "clients") if row["round"] > 4]
    lost = {row["client_id"] for row in late if row["outcome"] != "ok"}
    assert lost
    for client_id in lost:
        outcomes = [row["outcome"] for row in late if row["client_id"] == client_id]
        assert outcomes == ["error", *["ok"] * (len(outcomes) - 1)]
    details = [row["detail"] for row in late if row["outcome"] != "ok"]
    assert all("is not here (the server must send it again)" in one for one in details)
    assert any(row["round"] > 5 and row["client_id"] in lost and row["outcome"] == "ok" for row in late)
