"""How the live display looks: Rich renderables and plain lines from a run's progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedpeft.cli.progress import Progress, epsilon, metric, number
from fedpeft.report import numbers, outcomes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_WIDEST = 100
_NARROW = 84
_LONGEST = 400


def frame(state: Progress, width: int) -> RenderableType:
    """Return the panel: header, progress bars, key figures and the last rounds."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    narrow = width < _NARROW
    parts: list[RenderableType] = [_bars(state), Text(), _figures(state, narrow)]
    if state.last:
        parts += [Text(), _rounds(state, narrow)]
    parts += [Text(numbers.name(said, 200), style="yellow") for said in (state.kept, state.stopped) if said]
    return Panel(
        Group(*parts),
        title=_title(state),
        title_align="left",
        border_style="dim",
        padding=(0, 1),
        width=min(width, _WIDEST),
    )


def closing(state: Progress) -> RenderableType:
    """Return the summary that stays when the run is over."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _closing_facts(state):
        table.add_row(_text(label), _text(value, style="bold" if label == state.measure.name else ""))
    return table


def round_line(state: Progress) -> str:
    """Return one round as a plain line."""
    record = state.last[-1] if state.last else {}
    place = f"round {state.server_round}/{state.num_rounds}" if state.server_round else "before training"
    key, show = state.measure.key, state.measure.show
    parts = [f"{key} {show(metric(record, key))}", f"loss {numbers.plain(metric(record, 'loss'))}"]
    if state.server_round:
        parts.append(f"replies {_replies(record)}")
        parts += _unused(record)
        parts.append(
            f"{numbers.size(number(record, 'bytes_down'))} down, {numbers.size(number(record, 'bytes_up'))} up"
        )
        parts.append(f"{state.seconds} {numbers.duration(number(record, 'virtual_s'))}")
        if (energy := number(record, "energy_j")) is not None:
            parts.append(f"energy {numbers.energy(energy)}")
        if (spent := epsilon(record)) is not None:
            parts.append(f"epsilon {numbers.epsilon(spent)}")
        parts.append(f"wall {numbers.duration(number(record, 'wall_s'))}")
    left = state.remaining_s()
    if left is not None and state.server_round:
        parts.append(f"about {numbers.rough(left)} left")
    return f"{place}: {', '.join(parts)}"


def closing_line(state: Progress) -> str:
    """Return the end of the run as a plain line."""
    return ", ".join(f"{label.lower()} {value}" for label, value in _closing_facts(state))


def _closing_facts(state: Progress) -> list[tuple[str, str]]:
    summary = state.summary or {}
    measure = state.measure
    before = _inner(summary, "initial", measure.key, state.before)
    after = _inner(summary, "final", measure.key, state.now)
    best = _inner(summary, "best", measure.key, state.best)
    down, up = _known(summary, "bytes_down", state.bytes_down), _known(summary, "bytes_up", state.bytes_up)
    change = measure.change(before, after)
    facts = [
        ("Run", f"{numbers.name(summary.get('status') or 'finished')}, {state.finished} of {state.num_rounds} rounds"),
        (measure.name, f"{measure.show(before)} -> {measure.show(after)}" + (f" ({change})" if change else "")),
        (
            "Best",
            measure.show(best) + (f" in round {state.best_round}" if best is not None and best == state.best else ""),
        ),
        ("Dropped", _dropped(state)),
        (state.seconds.capitalize(), numbers.duration(_known(summary, "virtual_clock_s", state.virtual_clock_s))),
        ("Bytes", f"{numbers.size(down)} down, {numbers.size(up)} up"),
        ("Wall time", numbers.duration(number(summary, "wall_s"))),
    ]
    facts += _drawn_and_spent(
        _known(summary, "energy_j", state.energy_j),
        state.epsilon if (spent := epsilon(summary)) is None else spent,
        state.seconds,
    )
    report = summary.get("report")
    facts.append(("Report", str(report)) if report else ("Directory", state.run_dir or numbers.UNKNOWN))
    return facts


def _drawn_and_spent(energy_j: float | None, spent: float | None, seconds: str) -> list[tuple[str, str]]:
    """Return the lines on energy and privacy, where there are any."""
    facts = [] if energy_j is None else [("Energy", f"{numbers.energy(energy_j)} {seconds}")]
    return facts + ([] if spent is None else [("Epsilon", f"{numbers.epsilon(spent)} spent")])


def _known(summary: Mapping[str, Any], name: str, otherwise: float | None) -> float | None:
    value = number(summary, name)
    return otherwise if value is None else value


def _inner(summary: Mapping[str, Any], place: str, name: str, otherwise: float | None) -> float | None:
    inner = summary.get(place)
    return _known(inner, name, otherwise) if isinstance(inner, Mapping) else otherwise


def _title(state: Progress) -> Text:
    from rich.text import Text

    title = Text(" ")
    title.append(numbers.name(state.name, 40) or "fedpeft", style="bold")
    title.append(f"  {numbers.name(state.run_dir, 60)} ", style="dim")
    return title


def _bars(state: Progress) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    left = state.remaining_s()
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", width=8)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True, width=9)
    table.add_column(no_wrap=True, width=21, style="dim")
    bars = (
        ("Rounds", state.finished, state.num_rounds, "" if left is None else f"{numbers.rough(left)} left"),
        ("Clients" if state.phase != "evaluating" else "Held-out", state.done, state.total, state.phase),
    )
    for label, done, total, note in bars:
        bar = ProgressBar(total=max(total, 1), completed=done, complete_style="cyan", finished_style="green")
        table.add_row(_text(label), bar, _text(f"{done}/{total}" if total else numbers.UNKNOWN), _text(note))
    return table


def _figures(state: Progress, narrow: bool) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    measure = state.measure
    table.add_column(style="dim", width=max(8, len(measure.name)))
    table.add_column(overflow="fold")
    best = measure.show(state.best)
    if state.best is not None and not narrow:
        best += f" (round {state.best_round})"
    line = _text(f"{measure.show(state.before)} before,")
    line.append(f" {measure.show(state.now)} now", style="bold")
    line.append(f", best {best}")
    table.add_row(_text(measure.name), line)
    table.add_row(_text("Bytes"), _text(f"{numbers.size(state.bytes_down)} down, {numbers.size(state.bytes_up)} up"))
    table.add_row(_text("Clock"), _text(f"{numbers.duration(state.virtual_clock_s)} {state.seconds}"))
    table.add_row(_text("Dropped"), _text(_dropped(state), style="yellow" if state.failures else ""))
    for label, value in _drawn_and_spent(state.energy_j, state.epsilon, state.seconds):
        table.add_row(_text(label), _text(value))
    return table


def _rounds(state: Progress, narrow: bool) -> Table:
    from rich.table import Table

    key, show = state.measure.key, state.measure.show
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    columns = (
        ["round", key, "loss", "replies", state.seconds]
        if narrow
        else ["round", key, "loss", "replies", "down + up", state.seconds, "wall"]
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for record in state.last:
        trained = bool(record.get("round"))
        down, up = number(record, "bytes_down"), number(record, "bytes_up")
        cells = {
            "round": str(record.get("round")),
            key: show(metric(record, key)),
            "loss": numbers.plain(metric(record, "loss")),
            "replies": _replies(record) if trained else numbers.UNKNOWN,
            "down + up": numbers.size((down or 0) + (up or 0))
            if trained and (down is not None or up is not None)
            else numbers.UNKNOWN,
            state.seconds: numbers.duration(number(record, "virtual_s")) if trained else numbers.UNKNOWN,
            "wall": numbers.duration(number(record, "wall_s")),
        }
        table.add_row(*(_text(cells[column]) for column in columns))
    return table


def _replies(record: Mapping[str, Any]) -> str:
    return f"{numbers.count(number(record, 'num_replies'))}/{numbers.count(number(record, 'cohort_size'))}"


def _dropped(state: Progress) -> str:
    failed = state.failures
    total = sum(failed.values())
    words = f"{total} ({_reasons(failed)})" if total else "none"
    return words + (f", {state.surplus} surplus" if state.surplus else "")


def _unused(record: Mapping[str, Any]) -> list[str]:
    """Return what a plain line says of replies that were not used: failures by reason, and surplus apart."""
    counts = record.get("dropped")
    if not isinstance(counts, Mapping):
        return []
    failed = {outcome: count for outcome, count in counts.items() if outcomes.is_failure(outcome) and count}
    surplus = counts.get(outcomes.SURPLUS)
    return ([f"dropped {_reasons(failed)}"] if failed else []) + ([f"surplus {surplus}"] if surplus else [])


def _reasons(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{numbers.name(outcome, 30)} {count}" for outcome, count in sorted(counts.items()) if count)


def _text(text: str, style: str = "") -> Text:
    """Text without markup or control codes: names may hold square brackets and worse."""
    from rich.text import Text

    return Text(numbers.name(text, _LONGEST), style=style)
