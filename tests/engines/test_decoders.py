"""End to end on decoders: language modelling on conversations, and classification with a head on the last token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy
import toy_lm

from fedpeft import config as cfg
from fedpeft.cli.launch import launch, new_config
from fedpeft.client.building import build_runtime
from fedpeft.core.errors import ConfigError, DataError

KINDS = ("llama", "gpt2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, conversations, and labelled texts of the models' words."""
    made = tmp_path_factory.mktemp("decoders")
    for kind in KINDS:
        toy_lm.write_model(made / kind, kind)
    toy_lm.write_data(made / "talks")
    toy.write_data(made / "texts")
    return made


def run(config: dict[str, Any]) -> Path:
    assert launch(config, []) == 0
    return Path(config["run_dir"])


def make(overrides: list[str], folder: Path, *more: str) -> dict[str, Any]:
    return new_config({**cfg.compose([*overrides, *more]), "run_dir": str(folder)})


def rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_learns_and_puts_itself_on_record(kind: str, folder: Path, tmp_path: Path) -> None:
    """Twelve steps of rank 2 on two layers do not teach it to repeat, but which tokens there are: perplexity falls."""
    overrides = toy_lm.overrides(folder / kind, folder / "talks")
    run_dir = run(make(overrides, tmp_path / "run", "client.local_steps=12", "client.lr=0.05"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["final"]["perplexity"] < 0.9 * summary["initial"]["perplexity"]
    assert set(summary["final"]) >= {"perplexity", "token_accuracy", "loss", "client_perplexity_mean"}
    assert "accuracy" not in summary["final"] and summary["best"]["perplexity"] <= summary["final"]["perplexity"]
    data = json.loads((run_dir / "data.json").read_text())
    assert [client["groups"] for client in data["clients"]] == [{"ann": 19}, {"ben": 10}, {"cai": 10}]
    assert (data["labels"], data["num_train"], data["num_eval"]) == ([], 39, 12)
    assert {row["client_id"] for row in rows(run_dir, "evaluations.jsonl")} == {0, 1, 2}
    samples = json.loads((run_dir / "samples.json").read_text())["samples"]
    assert len(samples) == 3 and all(one["prompt"].startswith("user w") and one["reference"] for one in samples)
    page = (run_dir / "report.html").read_text()
    assert "Perplexity by rounds" in page and "What the model says" in page
    assert json.loads((run_dir / "adapter" / "adapter_config.json").read_text())["modules_to_save"] is None


def test_perplexity_and_adapter_do_not_depend_on_workers_or_parts(folder: Path, tmp_path: Path) -> None:
    """Other batches pad otherwise, which changes float32 sums in the last digits."""
    overrides = toy_lm.overrides(folder / "llama", folder / "talks")
    one = run(make(overrides, tmp_path / "one", "report=false"))
    other = run(make(overrides, tmp_path / "other", "report=false", "engine.workers=1", "evaluate.batch_size=1"))
    files = [folder / "adapter" / "adapter_model.safetensors" for folder in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    for ours, theirs in zip(rows(one, "rounds.jsonl"), rows(other, "rounds.jsonl"), strict=True):
        assert ours["eval"] == pytest.approx(theirs["eval"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_learns_to_classify(kind: str, folder: Path, tmp_path: Path) -> None:
    """Texts are padded behind; the head must look at the last token of each text, not at padding."""
    overrides = toy.overrides(folder / kind, folder / "texts")
    run_dir = run(make(overrides, tmp_path / "run", "rounds=2", "client.local_steps=20"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["final"]["accuracy"] > 0.75 and summary["final"]["accuracy"] > summary["initial"]["accuracy"]
    assert json.loads((run_dir / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == ["score"]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_what_a_decoder_says_of_a_text(kind: str, folder: Path, tmp_path: Path) -> None:
    """GPT-2 has no token for padding: the end-of-text token stands in, and no text holds it."""
    import numpy as np
    import torch

    runtime = build_runtime(make(toy.overrides(folder / kind, folder / "texts"), tmp_path))
    task, model = runtime.examples.task, runtime.tunable.model.eval()
    order = np.argsort(task.lengths(np.arange(40)))
    with torch.inference_mode():
        beside = task.per_example_loss(model, task.collate(order[[0, -1]]))[0]
        alone = task.per_example_loss(model, task.collate(order[:1]))[0]
    assert float(beside) == pytest.approx(float(alone), rel=1e-5)


def test_what_cannot_be_learned_is_left_out_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In two of twenty conversations nobody answers."""
    talks = toy_lm.conversations(20)
    for row in talks[:2]:
        row["messages"] = row["messages"][:1]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    overrides = toy_lm.overrides(folder / "llama", tmp_path)
    runtime = build_runtime(make(overrides, tmp_path, "task.held_out=2", "partition=iid"))
    assert "2 of 20 texts hold nothing to learn within model.max_length=24 tokens" in capsys.readouterr().err
    used = sorted([*runtime.examples.rows.tolist(), *runtime.examples.eval_rows.tolist()])
    assert used == list(range(2, 20))
    with pytest.raises(DataError, match=r"20 of 20 texts hold nothing to learn within model.max_length=4 tokens"):
        build_runtime(make(overrides, tmp_path, "task.held_out=2", "model.max_length=4"))


def test_more_clients_than_people_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 natural parts and num_clients is 6: set num_clients=5 or fewer"):
        build_runtime(make(toy_lm.overrides(folder / "llama", folder / "talks"), tmp_path, "num_clients=6"))


def test_another_split_is_held_out_as_it_is(folder: Path, tmp_path: Path) -> None:
    toy_lm.write_data(tmp_path / "data")
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps(toy_lm.conversations(1)[0]) + "\n")
    overrides = toy_lm.overrides(folder / "llama", tmp_path / "data")
    runtime = build_runtime(make(overrides, tmp_path, "task.held_out=test"))
    assert len(runtime.examples.eval_rows) == 1 and len(runtime.examples.rows) == 60
