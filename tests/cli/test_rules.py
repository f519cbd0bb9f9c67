"""Rules of people who make mistakes: each is told what is wrong with what it returned."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedpeft.cli.main import main

RULES = """
import numpy as np
from fedpeft import FedPeft

class NaN(FedPeft):
    def aggregate(self, global_tensors, updates):
        return {key: value * np.nan for key, value in global_tensors.items()}

class Nothing(FedPeft):
    def aggregate(self, global_tensors, updates):
        pass

class Wide(FedPeft):
    def aggregate(self, global_tensors, updates):
        return {key: value.astype("float64") for key, value in global_tensors.items()}

class InPlace(FedPeft):
    def client_tensors(self, global_tensors, client):
        for value in global_tensors.values():
            value *= 0
        return global_tensors
"""


@pytest.fixture(autouse=True)
def _rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_rules.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.delitem(sys.modules, "their_rules", raising=False)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("NaN", "the aggregate holds NaN or infinity"),
        ("Nothing", "aggregate must return arrays by name, got None"),
        ("Wide", "became float64 (2, 32), it must stay float32 (2, 32)"),
    ],
)
def test_a_run_in_which_every_aggregate_was_unsound_fails_and_says_why(
    toy: list[str], capfd: pytest.CaptureFixture[str], rule: str, reason: str
) -> None:
    assert main(["simulate", *toy, "rounds=1", "run_dir=run", f"strategy._target_=their_rules.{rule}"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fedpeft: the old model stayed after every round, at last because: ")
    assert lines[0].endswith(reason)
    assert json.loads(Path("run/rounds.jsonl").read_text())["kept"].endswith(reason)


def test_a_rule_cannot_change_the_global_tensors_in_place(toy: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """It would be sent nothing of it, and every reply be measured against a model that no client got."""
    assert main(["simulate", *toy, "rounds=1", "run_dir=run", "strategy._target_=their_rules.InPlace"]) == 1
    error = capfd.readouterr().err
    assert "output array is read-only" in error
    assert "their_rules.py" in error, "the author of a rule needs the trace"
    assert error.splitlines()[-1].startswith("fedpeft: the run stopped on the error above")
