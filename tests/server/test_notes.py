"""What strategies say of themselves goes on record, and what is no JSON is refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worlds import settings, strategies, update, world

from fedpeft.cli.launch import launch
from fedpeft.strategies.base import FedPeft

Make = Callable[..., dict[str, Any]]


SOURCE = """
from fedpeft.strategies.base import FedPeft

class Counting(FedPeft):
    def notes(self):
        return {"round_seen": self.view.server_round}

class Raw(FedPeft):
    def notes(self):
        return {"norm": self.seed - float("inf")}
"""


@pytest.fixture
def run(
    toy_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[int, Path]]]:
    """Return a function that runs two rounds under a strategy of ``SOURCE``."""
    (tmp_path / "noting.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)

    def go(kind: str) -> tuple[int, Path]:
        config = toy_config("rounds=2", f"strategy._target_=noting.{kind}")
        return launch(config, []), Path(config["run_dir"])

    yield go
    sys.modules.pop("noting", None)


@pytest.mark.parametrize("kind", strategies(), ids=lambda kind: kind.__name__)
def test_every_strategys_notes_are_plain_json(kind: type[FedPeft]) -> None:
    here = world(kind)
    strategy = kind(**{"cohort_size": 5, **settings(kind)})
    here.enter(strategy)
    strategy.aggregate(here.tensors, [update(strategy, here, client_id) for client_id in range(5)])
    notes = strategy.notes()
    assert json.loads(json.dumps(dict(notes), allow_nan=False)) == notes


def test_notes_are_in_the_rounds_line(run: Callable[[str], tuple[int, Path]]) -> None:
    code, run_dir = run("Counting")
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    assert code == 0
    assert [line["strategy"] for line in lines] == [{"round_seen": 1}, {"round_seen": 2}]


def test_notes_that_are_no_json_end_the_run_by_name(
    run: Callable[[str], tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("Raw")[0] == 2
    assert "strategy Raw: notes() must return plain JSON values" in capsys.readouterr().err
