"""What the display says of energy, epsilon, surplus, and a run whose budget is spent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_extras import make_hard, reply, write_privacy

from fedpeft.cli.display import LiveDisplay
from fedpeft.cli.panel import closing_line, round_line
from fedpeft.core.events import ClientReplied, PrivacyPromised, RoundFinished, RunFinished, RunStarted, RunStopped
from fedpeft.report.reader import read_run
from fedpeft.report.replay import replay

START = RunStarted(name="demo", run_dir="runs/demo", first_round=1, num_rounds=4, num_clients=9, cohort_size=3)


@pytest.fixture
def display() -> LiveDisplay:
    made = LiveDisplay(Console(file=io.StringIO(), width=60))
    made(START)
    return made


def finish(display: LiveDisplay, number: int, **record: Any) -> str:
    display(RoundFinished(server_round=number, record=record))
    return round_line(display.progress)


def test_energy_is_added_up_and_the_record_wins(display: LiveDisplay) -> None:
    """Replies say 3 + 4 J, an evaluation's joules do not count; the record says 10, then 20 of the next round: 30."""
    assert display.progress.energy_j is None
    for event in (reply(0, 3.0), reply(1, 4.0), reply(2, None), reply(0, 99.0, kind="evaluate")):
        display(event)
    assert display.progress.energy_j == 7.0
    assert "energy 10.0 J" in finish(display, 1, energy_j=10.0)
    finish(display, 2, energy_j=20.0)
    assert display.progress.energy_j == 30.0


def test_runs_without_energy_or_privacy_say_nothing_of_it(display: LiveDisplay) -> None:
    line = finish(display, 1, energy_j=None, epsilon=None)
    display(RunFinished(summary={"energy_j": None, "epsilon": None}))
    for text in (line, closing_line(display.progress)):
        assert "energy" not in text
        assert "epsilon" not in text


def test_epsilon_is_never_rounded_down(display: LiveDisplay) -> None:
    """2.00004 is more than 2: four digits, upward, make it 2.001."""
    assert "epsilon 2.001" in finish(display, 1, epsilon=2.00004)
    assert "epsilon infinite" in finish(display, 2, epsilon="inf")
    display(RunFinished(summary={"epsilon": 2.00004}))
    assert "epsilon 2.001 spent" in closing_line(display.progress)


def test_surplus_is_no_drop(display: LiveDisplay) -> None:
    line = finish(display, 1, dropped={"late": 2, "surplus": 3, "memory": 1})
    assert "dropped late 2, memory 1, surplus 3" in line
    assert display.progress.failures == {"late": 2, "memory": 1}
    assert "dropped 3 (late 2, memory 1), 3 surplus" in closing_line(display.progress)
    assert "dropped" not in finish(display, 2, dropped={"surplus": 3})


def test_a_run_that_ends_for_its_budget_says_so(display: LiveDisplay) -> None:
    finish(display, 1, epsilon=7.9)
    display(RunStopped(server_round=2, reason="the privacy budget is spent"))
    out = display.console.file.getvalue()  # type: ignore[attr-defined]
    assert out.endswith("stopped before round 2: the privacy budget is spent\n")
    with display.console.capture() as shown:
        display.console.print(display.frame())
    assert "stopped before round 2" in shown.get()


@pytest.mark.parametrize("live", [False, True])
def test_a_promise_is_printed_as_it_stands(live: bool) -> None:
    """Aligned, whole, on one line each, without control codes, before any panel is drawn."""
    lines = ("protects     one [client]", f"not covered  \x1b[2J{'x' * 200}")
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=live)
    LiveDisplay(console, live=live)(PrivacyPromised(lines=lines))
    assert out.getvalue() == f"protects     one [client]\nnot covered  ?[2J{'x' * 200}\n"


@pytest.mark.parametrize("width", [60, 100])
def test_a_frame_with_everything_fits_the_terminal(run_dir: Path, width: int) -> None:
    display = LiveDisplay(Console(file=io.StringIO(), width=width))
    for event in replay(read_run(make_hard(write_privacy(run_dir)))):
        display(event)
    with display.console.capture() as shown:
        display.console.print(display.frame())
    lines = shown.get().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    assert any("Energy" in line for line in lines)
    assert any("4.249 spent" in line for line in lines)


def test_replayed_replies_have_their_joules_and_mebibytes(shared_run: Path) -> None:
    view = read_run(shared_run)
    costs = [event.cost for event in replay(view) if isinstance(event, ClientReplied)]
    assert [cost.energy_j for cost in costs] == [row.energy_j for row in view.clients]
    assert [cost.peak_memory_mb for cost in costs] == [row.peak_memory_mb for row in view.clients]
