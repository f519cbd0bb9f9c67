"""What a strategy puts on record about itself is shown, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedpeft.core.errors import ReportError
from fedpeft.report.page import render
from fedpeft.report.reader import read_run
from fedpeft.report.rule import rule


def note(run_dir: Path, *notes: Any) -> None:
    """Give the first rounds these notes."""
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    lines = [{**line, "strategy": notes[i]} if i < len(notes) else line for i, line in enumerate(lines)]
    (run_dir / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_scores_and_chosen_layers_are_drawn_as_they_last_stood(run_dir: Path) -> None:
    note(run_dir, {"layer_scores": [9, 9, 9, 9]}, {"layer_scores": [4.0, 1.0, 3.0, 2.0], "layers": [0, 2], "eta": 0.5})
    section = rule([read_run(run_dir)], ["demo"])
    (chart,) = section.charts
    assert chart.note == "2 of 4 layers travel; scores from 1 to 4."
    assert [entry.name for entry in chart.legend] == ["chosen", "not chosen"]
    assert section.tables[0].rows == (("eta", "0.5"),)
    assert "What the strategy did" in render([read_run(run_dir)])


def test_runs_stand_side_by_side_and_the_last_value_of_each_counts(run_dir: Path) -> None:
    note(run_dir, {"a": 1, "b": 2.5}, {"a": 3, "text": "x", "flag": True, "list": [1]})
    view = read_run(run_dir)
    assert rule([view, view], ["one", "two"]).tables[0].rows == (("a", "3", "3"), ("b", "2.5", "2.5"))


def test_the_product_error_stands_beside_the_notes(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    lines = [{**line, "product_error": [0.25, 0.125, None][min(i, 2)]} for i, line in enumerate(lines)]
    (run_dir / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rule([read_run(run_dir)], ["demo"]).tables[0].rows == (("product_error", "0.125"),)


def test_runs_without_notes_say_so(run_dir: Path) -> None:
    assert rule([read_run(run_dir)], ["demo"]).missing == ("The strategy put nothing of its own on record.",)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ("x", "strategy must be an object"),
        ({"layer_scores": 3}, "layer_scores must be a list of numbers"),
        ({"layer_scores": ["a"]}, "layer_scores must be a number"),
    ],
)
def test_damaged_notes_are_named(run_dir: Path, notes: Any, message: str) -> None:
    note(run_dir, notes)
    with pytest.raises(ReportError, match=message):
        rule([read_run(run_dir)], ["demo"])


def test_numbers_out_of_range_do_not_stop_the_page(run_dir: Path) -> None:
    note(run_dir, {"layer_scores": [10**400, None, 2.0], "layers": [7], "big": 10**400})
    assert "Scores of the layers" in render([read_run(run_dir)])
