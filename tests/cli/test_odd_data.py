"""Data and models that do not fit each other are refused in one line, before the first round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpeft.cli.main import main

pytestmark = pytest.mark.usefixtures("here")


def refused(capfd: pytest.CaptureFixture[str], toy: list[str], *overrides: str) -> str:
    """Return the one line that a run ends with."""
    capfd.readouterr()
    assert main(["simulate", *toy, "rounds=1", "run_dir=run", *overrides]) in (1, 2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert not Path("run/checkpoints").exists()
    return lines[0]


def write(rows: list[dict[str, object]]) -> str:
    Path("data").mkdir()
    Path("data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "task.path=data"


def test_texts_longer_than_the_model_has_positions(capfd: pytest.CaptureFixture[str], toy: list[str]) -> None:
    """70 words, [CLS] and [SEP] are 72 tokens; the toy model has 64 positions."""
    path = write([{"text": "w1 " * 70, "label": i % 2, "group": "a"} for i in range(100)])
    line = refused(capfd, toy, path, "model.max_length=128")
    assert line == (
        "fedpeft: model.max_length must be at most 64: BertForSequenceClassification has 64 positions, a text has 72 "
        "tokens"
    )


def test_one_class(capfd: pytest.CaptureFixture[str], toy: list[str]) -> None:
    path = write([{"text": "w1", "label": "same", "group": "a"} for _ in range(100)])
    assert "'label' holds one class, 'same'" in refused(capfd, toy, path)


def test_a_column_that_is_there_twice(capfd: pytest.CaptureFixture[str], toy: list[str]) -> None:
    Path("data").mkdir()
    Path("data/train.csv").write_text("text,text,label,group\na,b,1,x\nc,d,0,x\n")
    assert "text" in refused(capfd, toy, "task.path=data", "num_clients=1", "cohort_size=1")


def test_a_tokenizer_that_cannot_pad(capfd: pytest.CaptureFixture[str], toy: list[str], tmp_path: Path) -> None:
    import toy as maker

    folder = maker.write_model(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if not key.startswith(("pad_", "eos_"))})
    )
    line = refused(capfd, toy, f"model.path={folder}")
    assert "neither a padding nor an end token" in line
