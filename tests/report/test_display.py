from __future__ import annotations

import io
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_extras import reply

from fedpeft.cli.display import LiveDisplay
from fedpeft.core.events import (
    EvaluationProgress,
    Event,
    ExchangeStarted,
    RoundFinished,
    RoundKept,
    RunFinished,
    RunStarted,
)
from fedpeft.report.reader import read_run
from fedpeft.report.replay import replay

START = RunStarted(name="demo", run_dir="runs/demo", first_round=1, num_rounds=4, num_clients=9, cohort_size=3)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain_display() -> tuple[LiveDisplay, io.StringIO]:
    out = io.StringIO()
    return LiveDisplay(Console(file=out, width=60)), out


def terminal(clock: Clock | None = None, width: int = 60) -> tuple[LiveDisplay, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=30, force_terminal=True, color_system="standard")
    return LiveDisplay(console, live=True, clock=clock or Clock()), out


def text_of(display: LiveDisplay, width: int = 60) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width)
    display.console = console
    console.print(display.frame())
    return out.getvalue()


def test_without_a_terminal_there_is_one_line_a_round_and_no_control_code(shared_run: Path) -> None:
    display, out = plain_display()
    with display:
        for event in replay(read_run(shared_run)):
            display(event)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 6 + 1
    assert not any(ord(letter) < 32 and letter != "\n" for letter in out.getvalue())
    assert lines[0].startswith("demo-sentiment: 5 rounds, 12 of 20 clients")
    assert lines[2].startswith("round 1/5: accuracy 66.6 %")
    assert "accuracy 48.7 % -> 81.9 % (+33.2 points)" in lines[-1]


def test_force_color_does_not_make_a_pipe_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "log").open("w") as file, LiveDisplay(Console(file=file)) as display:
        display(START)
        display(RoundFinished(server_round=1, record={}))
    assert "\x1b" not in (tmp_path / "log").read_text()


def test_it_agrees_with_the_summary_of_the_run(shared_run: Path) -> None:
    """What the display counted from events is what the run summed up."""
    view = read_run(shared_run)
    display, _ = plain_display()
    for event in list(replay(view))[:-1]:
        display(event)
    state, summary = display.progress, view.summary
    assert (state.bytes_down, state.bytes_up) == (summary["bytes_down"], summary["bytes_up"])
    assert state.best == summary["best"]["accuracy"]
    assert (state.before, state.now) == (summary["initial"]["accuracy"], summary["final"]["accuracy"])
    assert sum(state.dropped.values()) == sum(line.outcome != "ok" for line in view.clients)


def test_a_drop_is_counted_once(shared_run: Path) -> None:
    """Live counts and the round's record tell of the same clients; the record wins."""
    display, _ = plain_display()
    display(START)
    display(reply(0, outcome="late"))
    display(reply(1, outcome="lost"))
    assert display.progress.dropped == {"late": 1, "lost": 1}
    display(RoundFinished(server_round=1, record={"dropped": {"late": 1, "lost": 1}, "bytes_down": 2000}))
    display(reply(2, outcome="late"))
    assert display.progress.dropped == {"late": 2, "lost": 1}
    assert display.progress.bytes_down == 3000


def test_time_left_is_mean_round_times_rounds_to_go() -> None:
    """Round 1 of 4 took 10 s after round 0: three rounds of 10 s are left. Nothing is known before."""
    clock = Clock()
    display, _ = terminal(clock)
    display(START)
    clock.now = 100.0
    display(RoundFinished(server_round=0, record={}))
    assert display.progress.remaining_s() is None
    clock.now = 110.0
    display(RoundFinished(server_round=1, record={}))
    assert display.progress.remaining_s() == pytest.approx(30.0)
    display.__exit__(None, None, None)


def test_a_resumed_run_counts_from_where_it_is() -> None:
    clock = Clock()
    display, _ = terminal(clock)
    display(replace(START, first_round=3))
    assert (display.progress.finished, display.progress.remaining_s()) == (2, None)
    clock.now = 8.0
    display(RoundFinished(server_round=3, record={}))
    assert display.progress.remaining_s() == pytest.approx(8.0)
    display.__exit__(None, None, None)


def test_a_flood_of_replies_is_drawn_at_most_eight_times_a_second() -> None:
    """2000 replies in 2 seconds: at most 16 frames and the first; each frame starts by erasing lines."""
    clock = Clock()
    display, out = terminal(clock)
    display(START)
    display(ExchangeStarted(server_round=1, kind="train", cohort_size=2000))
    before = out.getvalue().count("Accuracy")
    for number in range(2000):
        clock.now += 0.001
        display(reply(number))
    assert 10 <= out.getvalue().count("Accuracy") - before <= 17
    display.__exit__(None, None, None)


def test_no_thread_and_no_lock_between_events() -> None:
    """The launcher forks: a child must be able to use the same console at once."""
    threads = threading.active_count()
    display, _ = terminal()
    display(START)
    display(reply())
    assert threading.active_count() == threads
    child = os.fork()
    if child == 0:
        display.console.print("from the child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    display.__exit__(None, None, None)


def test_standard_streams_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    streams = sys.stdout, sys.stderr
    display, _ = terminal()
    display(START)
    assert (sys.stdout, sys.stderr) == streams
    display.__exit__(None, None, None)


def interrupted(display: LiveDisplay) -> None:
    with display:
        display(START)
        display(RoundFinished(server_round=1, record={}))
        raise KeyboardInterrupt


def test_ctrl_c_gives_the_cursor_back_and_says_where_it_stopped() -> None:
    display, out = terminal()
    with pytest.raises(KeyboardInterrupt):
        interrupted(display)
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
    assert out.getvalue().rstrip().endswith("interrupted after round 1 of 4")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_frame_fits_the_terminal(shared_run: Path, width: int) -> None:
    display, _ = terminal(width=width)
    for event in list(replay(read_run(shared_run)))[:-1]:
        display(event)
    display.__exit__(None, None, None)
    lines = text_of(display, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    assert any("81.9 %" in line for line in lines)


def test_numbers_may_be_null_everywhere() -> None:
    blank = json.loads(
        '{"round": 1, "cohort_size": null, "num_replies": null, "dropped": null, "eval": null, "wall_s": null}'
    )
    events: list[Event] = [
        START,
        ExchangeStarted(server_round=1, kind="train", cohort_size=0),
        EvaluationProgress(server_round=1, done=0, total=0),
        RoundKept(server_round=1, reason="no reply"),
        RoundFinished(server_round=1, record=blank),
        RoundFinished(server_round=2, record={"eval": {"accuracy": None}}),
        RunFinished(summary={"final": None, "best": {"accuracy": None}}),
    ]
    for display, out in (plain_display(), terminal()):
        with display:
            for event in events:
                display(event)
        assert "no reply" in out.getvalue()


def test_names_are_neither_markup_nor_control_codes() -> None:
    display, out = plain_display()
    display(replace(START, name="[bold]x[/nope] \x1b[2J"))
    assert "[bold]x[/nope] [2J: 4 rounds" in out.getvalue()
    assert "[bold]x[/nope]" in text_of(display)


def test_the_closing_summary_names_the_report() -> None:
    display, out = terminal()
    with display:
        display(START)
        display(RunFinished(summary={"status": "finished", "report": "runs/demo/report.html"}))
    assert "runs/demo/report.html" in out.getvalue()
