"""Make the pictures of the README from a finished run: ``python benchmarks/pictures.py RUN``.

``docs/images/terminal.svg`` is the live display in the middle of the run and at its end, replayed from the run's own
records; ``docs/images/report.png`` is the top of its report in headless Chromium (``apt-get install chromium``).
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from fedpeft.cli import panel
from fedpeft.cli.progress import Progress
from fedpeft.core.errors import FedPeftError, ReportError
from fedpeft.core.events import ClientReplied, Event, RoundFinished, RunFinished, RunStarted
from fedpeft.report.page import write_report
from fedpeft.report.reader import RunView, read_run
from fedpeft.report.replay import replay

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
COLUMNS = 92
WIDTH, HEIGHT = 1200, 1100
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1.5",
    "--blink-settings=preferredColorScheme=1",
)
THEME = TerminalTheme(
    (26, 32, 41),
    (230, 234, 240),
    [
        (26, 32, 41),
        (240, 125, 56),
        (47, 194, 150),
        (240, 177, 53),
        (75, 163, 224),
        (221, 147, 189),
        (86, 180, 233),
        (200, 208, 218),
    ],
)


def main(argv: Sequence[str]) -> int:
    """Write both pictures and print where they lie."""
    parser = argparse.ArgumentParser(description="Regenerate docs/images from a finished run directory.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a finished run")
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder for the pictures (default: docs/images)")
    arguments = parser.parse_args(list(argv))
    view = read_run(arguments.run)
    if not view.summary or not view.clients:
        raise ReportError(
            f"{arguments.run} holds no finished run (give a run directory with summary.json and clients.jsonl)"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(terminal(view, arguments.output / "terminal.svg"))
    print(report(arguments.run, arguments.output / "report.png"))
    return 0


def terminal(view: RunView, target: Path) -> Path:
    """Draw the live display in the middle of the run's second half, and its closing summary, as one SVG."""
    events = [_public(event, view) for event in replay(view)]
    moment = _moment(events)
    clock = _Clock()
    state = Progress(clock=clock)
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print("$ fedpeft simulate", highlight=False, style="bold")
    for place, event in enumerate(events):
        clock.advance(event, state)
        state.take(event)
        if place == moment:
            console.print(panel.frame(state, COLUMNS))
    console.print()
    console.print(panel.closing(state))
    drawing = console.export_svg(title="fedpeft", theme=THEME, unique_id="fedpeft-terminal")
    drawing = re.sub(r"@font-face \{.*?\}", "", drawing, flags=re.DOTALL).replace("Fira Code,", f"{FONTS},")
    target.write_text("\n".join(line.rstrip() for line in drawing.splitlines()) + "\n", encoding="utf-8")
    return target


class _Clock:
    """Wall seconds as the run recorded them: a round's seconds are spread over its replies."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, event: Event, state: Progress) -> None:
        """Move on by what the event took."""
        past = [record.get("wall_s") or 0.0 for record in state.last if record.get("round")]
        if isinstance(event, ClientReplied) and past and state.total:
            self.now += past[-1] / state.total
        elif isinstance(event, RoundFinished) and not past:
            self.now += event.record.get("wall_s") or 0.0


def _moment(events: Sequence[Event]) -> int:
    """Place of the reply that is two thirds through the round before the last."""
    rounds = sorted({event.server_round for event in events if isinstance(event, ClientReplied)})
    chosen = rounds[-2] if len(rounds) > 1 else rounds[-1]
    places = [
        place for place, event in enumerate(events) if isinstance(event, ClientReplied) and event.server_round == chosen
    ]
    return places[len(places) * 2 // 3]


def _public(event: Event, view: RunView) -> Event:
    """Show the run under ``runs/`` instead of where it happens to lie on this machine."""
    shown = f"runs/{view.path.resolve().name}"
    if isinstance(event, RunStarted):
        return replace(event, run_dir=shown)
    if isinstance(event, RunFinished):
        return replace(event, summary={**event.summary, "report": f"{shown}/report.html"})
    return event


def report(run: Path, target: Path) -> Path:
    """Photograph the top of the run's report."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise ReportError("no Chromium found for the picture of the report (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page = write_report([run], Path(folder) / "report.html")
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(str(run), f"runs/{run.resolve().name}"), encoding="utf-8")
        size = f"--window-size={WIDTH},{HEIGHT}"
        command = [
            browser,
            *FLAGS,
            size,
            f"--user-data-dir={folder}/profile",
            f"--screenshot={target.resolve()}",
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not target.is_file():
        raise ReportError(f"{browser} took no picture: {' '.join(done.stderr.split())[-200:]}")
    return target


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FedPeftError as error:
        sys.exit(f"error: {error}")
