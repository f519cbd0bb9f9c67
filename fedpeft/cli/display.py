"""Show a run while it goes on: a live panel on a terminal, one plain line a round anywhere else.

The launcher forks its workers, so the display keeps no thread and holds no lock between events: it draws when an event
comes in, at most eight times a second. Standard output and error stay as they are; what else has to be printed beside a
live panel goes through ``display.console``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from fedpeft.cli import panel
from fedpeft.cli.progress import Progress
from fedpeft.core.errors import printable
from fedpeft.core.events import (
    ClientLeftOut,
    Event,
    Preparing,
    PrivacyPromised,
    RoundFinished,
    RoundKept,
    RunFinished,
    RunStarted,
    RunStopped,
)
from fedpeft.report import numbers

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SECONDS_BETWEEN_FRAMES = 1 / 8
_LONGEST = 1000


class LiveDisplay:
    """An observer that shows a run on the terminal; a context manager.

    Args:
        console: where to draw; None makes one on standard output.
        live: draw a panel that changes in place; None does so on a terminal only. Elsewhere (pipe, CI) one plain line
            is printed at the start, after each round and at the end, without control codes.
        clock: returns seconds that only grow.

    Example:
        >>> from fedpeft.core.events import RunStarted
        >>> with LiveDisplay(live=False) as display:
        ...     sizes = {"first_round": 1, "num_rounds": 5, "num_clients": 20, "cohort_size": 8}
        ...     display(RunStarted(name="demo", run_dir="runs/demo", **sizes))
        demo: 5 rounds, 8 of 20 clients a round, in runs/demo
    """

    def __init__(
        self, console: Console | None = None, *, live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console

        self.console = console if console is not None else Console()
        on_terminal = self.console.is_terminal and not self.console.is_dumb_terminal and self.console.file.isatty()
        self._in_place = on_terminal if live is None else live
        self._clock = clock
        self._drawn_at = float("-inf")
        self._live: Live | None = None
        self.progress = Progress(clock=clock)

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_showing = self._live is not None
        self._stop()
        if kind is not None and self.progress.summary is None and (was_showing or self.progress.name):
            what = "interrupted" if issubclass(kind, KeyboardInterrupt) else "stopped"
            self._line(f"{what} after round {self.progress.finished} of {self.progress.num_rounds}")

    def __call__(self, event: Event) -> None:
        """Take one event and show what it changes."""
        if isinstance(event, Preparing):
            self._line(f"{event.what} ...")
            return
        if isinstance(event, ClientLeftOut):
            self._line(f"left out: {event.reason}")
            return
        if isinstance(event, PrivacyPromised):
            # The names of the lines stand in a column of their own, so spaces count.
            for line in event.lines:
                self._whole(printable(line, _LONGEST))
            return
        self.progress.take(event)
        if self._in_place:
            self._draw(event)
        else:
            self._print(event)

    def frame(self) -> RenderableType:
        """Return the panel as it stands now."""
        return panel.frame(self.progress, self.console.width)

    def _draw(self, event: Event) -> None:
        if isinstance(event, RunFinished):
            self._stop()
            self.console.print(panel.closing(self.progress))
            return
        now = self._clock()
        if isinstance(event, RunStarted | RoundFinished) or now - self._drawn_at >= _SECONDS_BETWEEN_FRAMES:
            self._drawn_at = now
            live = self._start() if self._live is None else self._live
            live.update(self.frame(), refresh=True)

    def _start(self) -> Live:
        from rich.live import Live

        self._live = Live(
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()
        return self._live

    def _stop(self) -> None:
        if self._live is not None:
            self._live.update(self.frame())
            self._live.stop()
            self._live = None

    def _print(self, event: Event) -> None:
        state = self.progress
        if isinstance(event, RunStarted):
            self._line(
                f"{state.name}: {event.num_rounds} rounds, {event.cohort_size} of {event.num_clients} clients a round, "
                f"in {state.run_dir}"
            )
        elif isinstance(event, RoundKept):
            self._line(state.kept)
        elif isinstance(event, RunStopped):
            self._line(state.stopped)
        elif isinstance(event, RoundFinished):
            self._line(panel.round_line(state))
        elif isinstance(event, RunFinished):
            self._line(panel.closing_line(state))

    def _line(self, text: str) -> None:
        """Print text on one line: without control codes, spaces run together."""
        self._whole(numbers.name(text, _LONGEST))

    def _whole(self, text: str) -> None:
        """Print one line as it is: no markup, no colours, no wrapping."""
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
