"""The privacy card says what the files say, rounds no epsilon down, and stands without any of its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_extras import PROMISE, make_silent, write_privacy
from synthetic_run import Shape, write_run

from fedpeft.core.errors import ReportError
from fedpeft.privacy.accounting import Release
from fedpeft.privacy.ledger import LEDGER, POPULATION, Ledger
from fedpeft.privacy.statement import PrivacyStatement
from fedpeft.report import numbers
from fedpeft.report.overview import key_figures
from fedpeft.report.page import render, sections
from fedpeft.report.privacy import card
from fedpeft.report.reader import read_run


def terms(folder: Path) -> dict[str, tuple[str, ...]]:
    section = card([read_run(folder)], ["demo"])
    found = {term: sentences for one in section.facts for term, sentences in one.items}
    return found | {one.caption: one.points for one in section.facts if one.points}


def test_the_card_is_the_statement(run_dir: Path) -> None:
    """Unit, trust, mechanism, epsilon with delta and accountant, and every sentence on what is not covered."""
    found = terms(write_privacy(run_dir))
    assert found["Protects"] == ("one client (add or remove one client with all its data, in all its rounds)",)
    assert found["Must be trusted"] == (PROMISE["trust"],)
    assert found["Mechanism"] == (PROMISE["mechanism"], "clip norm 0.5, noise multiplier 1.21")
    assert found["Sampling"] == (PROMISE["sampling"], "rate 0.6")
    assert found["Epsilon planned"][0].startswith("7.932 at delta 1e-05 for 5 releases (PLD; 8.61")
    assert found["Epsilon spent"] == ("4.249, the most of any client; 5 releases on record",)
    assert found["Not covered"] == tuple(PROMISE["not_covered"])


def test_every_name_is_the_statements() -> None:
    """What the report reads is what a statement writes."""
    statement = PrivacyStatement.from_dict(PROMISE)
    assert statement.to_dict() == PROMISE


def test_it_stands_first_and_its_chart_shows_what_is_planned(run_dir: Path) -> None:
    view = read_run(write_privacy(run_dir))
    first = sections([view], ["demo"])[0]
    assert first.title == "Privacy"
    assert [entry.name for entry in first.charts[0].legend] == ["spent", "planned for the whole run"]
    assert ("Epsilon", "4.249", "delta 1e-05, of 7.932 planned") in key_figures(view)


@pytest.mark.parametrize("value", [0.9 + 1e-9, 1 / 3, 7.99951, 8.0, 8.000001, 123.456])
def test_no_epsilon_is_told_as_less_than_it_is(value: float) -> None:
    assert value <= float(numbers.epsilon(value)) <= value * 1.002


def test_odd_epsilons() -> None:
    assert (numbers.epsilon(None), numbers.epsilon(0.0), numbers.epsilon(-1.0)) == ("-", "0", "-")
    assert numbers.epsilon(float("inf")).startswith("infinite")


def test_cohorts_that_must_stay_secret_are_said(run_dir: Path) -> None:
    """Only where one client is hidden by sampling; a page of an example-level run tells no secret of that kind."""
    assert "nobody learning who was in which cohort" in render([read_run(write_privacy(run_dir))])
    for changes in ({"sampling_rate": 1.0}, {"unit": "one example of a client"}):
        assert "nobody learning" not in render([read_run(write_privacy(run_dir, **changes))])


def test_no_noise_is_no_privacy(run_dir: Path) -> None:
    """``inf`` stands in the files as text or as JSON's Infinity; neither breaks the page or its chart."""
    write_privacy(run_dir, epsilon="inf", spent="inf", epsilon_rdp=None)
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"epsilon": "inf"}))
    rows = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    for row, value in zip(rows, ["inf", float("inf"), None, "inf", "inf"], strict=True):
        row["epsilon"] = value
    (run_dir / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = card([read_run(run_dir)], ["demo"])
    assert section.charts == ()
    assert terms(run_dir)["Epsilon spent"][0].startswith("infinite (no privacy)")
    assert "infinite (no privacy)" in render([read_run(run_dir)])


def test_a_private_run_may_keep_silent(run_dir: Path) -> None:
    """Neither examples nor losses of clients on record, and no number in the promise: the page stands."""
    assert "</html>" in render([read_run(make_silent(write_privacy(run_dir)))])
    numeric = [key for key, value in PROMISE.items() if isinstance(value, int | float)]
    write_privacy(run_dir, **dict.fromkeys([*numeric, "spent", "releases", "not_covered", "accountant"]))
    assert set(terms(run_dir)) == {"Protects", "Must be trusted", "Mechanism", "Sampling", "Epsilon spent"}
    assert "</html>" in render([read_run(run_dir)])
    (run_dir / "privacy.json").write_text("{}")
    assert "</html>" in render([read_run(run_dir)])


def test_warnings_and_spans_of_the_clients_are_shown(run_dir: Path) -> None:
    found = terms(
        write_privacy(run_dir, warnings=["delta 0.037 is large"], noise_multiplier_most=2.5, sampling_rate_least=0.25)
    )
    assert found["Warning"] == ("delta 0.037 is large",)
    assert found["Mechanism"][1].endswith("noise multiplier 1.21 to 2.5 by client")
    assert found["Sampling"][1] == "rate 0.25 to 0.6 by client"


def test_a_ledger_that_lacks_what_the_run_released_is_said(run_dir: Path) -> None:
    """The run's own files are held against each other, and no path of this machine gets into the page."""
    write_privacy(run_dir, terms={"privacy": "client_level", "run_id": "r"}, spent=None, releases=3)
    (fault,) = terms(run_dir)["Ledger is damaged"]
    assert fault.startswith("the privacy ledger ledger.jsonl cannot be opened")
    assert "Ledger is damaged" in render([read_run(run_dir)])
    rounds = [json.loads(line)["round"] for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    with Ledger(run_dir / LEDGER) as ledger:
        for server_round in rounds:
            ledger.book(
                Release(noise_multiplier=1.0), unit=POPULATION, server_round=server_round, run_id="r", dataset=""
            )
    assert "Ledger is damaged" not in terms(run_dir)
    (run_dir / LEDGER).write_bytes((run_dir / LEDGER).read_bytes().replace(b'"steps":1', b'"steps":2', 1))
    assert "was edited" in terms(run_dir)["Ledger is damaged"][0]


def test_a_run_that_ended_for_its_budget_says_so(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"stopped": "the privacy budget is spent <b>"}))
    assert "It ended before its last round: the privacy budget is spent &lt;b&gt;" in render([read_run(run_dir)])


def test_a_run_without_a_promise_says_so(tmp_path: Path) -> None:
    """It stands among what is left out, and no epsilon is among the figures."""
    view = read_run(write_run(tmp_path / "plain", Shape(num_rounds=2)))
    section = card([view], ["plain"])
    assert section.empty
    assert section.missing[0].startswith("No promise is on record")
    assert "Epsilon" not in {label for label, _, _ in key_figures(view)}


def test_several_runs_stand_side_by_side(run_dir: Path, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", Shape(num_rounds=2))
    local = write_privacy(write_run(tmp_path / "local", Shape(num_rounds=2, epsilon=True)), unit="one client, locally")
    views = [read_run(folder) for folder in (write_privacy(run_dir), plain, local)]
    section = card(views, ["a", "b", "c"])
    (table,) = section.tables
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.head == ("", "a", "b", "c")
    assert rows["Protects"][0].startswith("one client (")
    assert rows["Protects"][1].startswith("No promise")
    assert rows["Protects"][2].startswith("one client, locally")
    assert rows["Epsilon spent"][1] == "-"
    assert [entry.name for entry in section.charts[0].legend] == ["a", "c"]
    assert "</html>" in render(views)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": "eight"}, r"privacy\.json: epsilon must be a number, got 'eight'"),
        ({"unit": 3}, r"privacy\.json: unit must be text, got 3"),
        ({"releases": 1.5}, r"privacy\.json: releases must be a whole number"),
        ({"not_covered": "all"}, r"privacy\.json: not_covered must be a list of names"),
    ],
)
def test_a_damaged_promise_is_named(run_dir: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        read_run(write_privacy(run_dir, **changes))


def test_texts_of_a_promise_are_only_text(run_dir: Path) -> None:
    page = render([read_run(write_privacy(run_dir, trust="<script>alert(1)</script>", not_covered=["<b>x</b>"]))])
    assert "<script" not in page
    assert "<b>x</b>" not in page
