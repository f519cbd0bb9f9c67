"""The page and the display of a language model: perplexity where a classifier has accuracy, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Shape, write_run

from fedpeft.cli.panel import closing_line, round_line
from fedpeft.cli.progress import Progress
from fedpeft.core.errors import ReportError
from fedpeft.report import series
from fedpeft.report.measure import ACCURACY, PERPLEXITY, measure_of
from fedpeft.report.page import render
from fedpeft.report.reader import read_run
from fedpeft.report.replay import replay

EVALUATIONS = [
    {"round": number, "client_id": client, "device": "laptop", "perplexity": 10.0 * (client + 1) / number, "loss": 2.0}
    for number in (1, 2)
    for client in range(11)
]
SAMPLE = {"prompt": "user\nHow are <you>?", "reference": "fine", "initial": "I am a model", "final": "good, you?"}


def _write(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"name": "chat", "initial": _eval(40.0), "final": _eval(30.5)}))
    rounds = [{"round": 1, "eval": _eval(30.0), "virtual_clock_s": 5.0}, {"round": 2, "eval": _eval(30.5)}]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rounds))
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EVALUATIONS))
    (folder / "samples.json").write_text(json.dumps({"new_tokens": 30, "samples": [SAMPLE], **more}))
    return folder


def _eval(perplexity: float) -> dict[str, float]:
    return {
        "perplexity": perplexity,
        "token_accuracy": 0.25,
        "loss": 3.4,
        "token_accuracy/x": 0.2,
        "token_accuracy/y": 1,
    }


def test_a_run_is_measured_by_what_it_has() -> None:
    assert measure_of({"loss": 1.0}) == measure_of() == ACCURACY
    assert measure_of({}, {"perplexity": 3.0}) == PERPLEXITY
    assert (PERPLEXITY.best([3.0, 2.0]), ACCURACY.best([0.3, 0.2])) == (2.0, 0.3)
    assert (PERPLEXITY.show(30.456), PERPLEXITY.change(40.0, 30.5), ACCURACY.change(0.5, 0.6)) == (
        "30.46", "-9.50", "+10.0 points"
    )  # fmt: skip


def test_the_worst_tenth_has_the_highest_perplexities(tmp_path: Path) -> None:
    """Of 10, 20 .. 110 the worst tenth is two clients: 105; the mean is 60; quartiles 35 and 85."""
    found = series.spread(read_run(_write(tmp_path)), PERPLEXITY)
    assert (found.rounds, found.mean[0], found.worst[0]) == ([1, 2], 60.0, 105.0)
    assert (found.lower[0], found.upper[0], found.worst[1]) == (35.0, 85.0, 52.5)


def test_the_page_shows_perplexity_and_samples(tmp_path: Path) -> None:
    page = render([read_run(_write(tmp_path))])
    for text in ("Perplexity by rounds", "Next-token accuracy by rounds", "Next-token accuracy by group", "30.50",
                 "40.00 before", "round 1", "Perplexity on the clients&#39; own data", "What the model says",
                 "good, you?", "user How are &lt;you&gt;?", "before training"):  # fmt: skip
        assert text in page, text
    for text in ("Accuracy by rounds", "<you>", "Accuracy and loss"):
        assert text not in page, text


def test_a_classifier_beside_it_keeps_its_accuracy(tmp_path: Path) -> None:
    views = [read_run(_write(tmp_path / "chat")), read_run(write_run(tmp_path / "demo", Shape(num_rounds=2)))]
    page = render(views)
    for text in ("Accuracy and perplexity and loss", "Accuracy by rounds", "Perplexity by rounds", "Accuracy before",
                 "Perplexity before", "Best perplexity"):  # fmt: skip
        assert text in page, text


def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    (_write(tmp_path) / "samples.json").unlink()
    assert "No language model has said anything" in render([read_run(tmp_path)])


def test_samples_of_a_wrong_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"samples.json: samples must be a list of objects"):
        read_run(_write(tmp_path, samples=["x"]))


def test_the_display_speaks_of_perplexity(tmp_path: Path) -> None:
    """Round 1 was the best, with the lowest."""
    state = Progress(clock=lambda: 0.0)
    lines = []
    for event in replay(read_run(_write(tmp_path))):
        state.take(event)
        lines.append(round_line(state))
    assert any("perplexity 30.00, loss 3.400" in line for line in lines)
    assert (state.before, state.now, state.best, state.best_round) == (40.0, 30.5, 30.0, 1)
    assert "perplexity 40.00 -> 30.50 (-9.50)" in closing_line(state)
