"""The part of the page about the runs as a whole: key figures, rounds, config and versions."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.report import numbers, outcomes, privacy, series
from fedpeft.report.blocks import Fold, Section, Table, filled, titled
from fedpeft.report.measure import Measure
from fedpeft.report.reader import RunView
from fedpeft.report.rows import RoundRow

MOST_ROUNDS = 1000
_HEAD = (
    "round",
    "loss",
    "training loss",
    "cohort",
    "dropped",
    "surplus",
    "down",
    "up",
    "simulated",
    "clock",
    "energy",
    "epsilon",
    "wall",
)


def key_figures(view: RunView) -> list[tuple[str, str, str]]:
    """Return what a person asks first of a run: label, value and a detail, in a fixed order."""
    facts = view.figures
    rows, measure = view.rounds, series.measure(view)
    done = max((row.round for row in rows), default=0)
    planned = view.config.get("rounds")
    xs, ys = series.points(view, measure.key)
    best = ys.index(measure.best(ys)) if ys else None
    clock = _first(
        facts.number("virtual_clock_s"),
        next((r.virtual_clock_s for r in reversed(rows) if r.virtual_clock_s is not None), None),
    )
    wall = _first(facts.number("wall_s"), series.total(row.wall_s for row in rows))
    cpu = _first(facts.number("train_cpu_s"), series.total(row.train_cpu_s for row in rows))
    memory, ratio = facts.number("peak_rss_mb"), facts.number("overhead_ratio")
    change = f"{measure.show(ys[0])} before" if ys else ""
    found = [
        (measure.name, measure.show(ys[-1] if ys else None), change),
        (
            f"Best {measure.key}",
            measure.show(ys[best] if best is not None else None),
            f"round {xs[best]:.0f}" if best is not None else "",
        ),
        ("Rounds", numbers.count(done), f"of {planned:,} planned" if isinstance(planned, int) else ""),
        (f"{series.how([view]).capitalize()} time", numbers.duration(clock), ""),
        (
            "Bytes down",
            numbers.size(_first(facts.number("bytes_down"), series.total_bytes(view, "down"))),
            "server to clients",
        ),
        (
            "Bytes up",
            numbers.size(_first(facts.number("bytes_up"), series.total_bytes(view, "up"))),
            "clients to server",
        ),
        ("Wall time", numbers.duration(wall), f"training: {numbers.duration(cpu)} CPU" if cpu else ""),
        ("Overhead ratio", numbers.plain(ratio, 2), "1.00 is no overhead" if ratio is not None else ""),
        (
            "Peak memory",
            numbers.size(None if memory is None else memory * 1e6),
            "this machine, shared pages once" if memory is not None else "",
        ),
    ]
    energy = _first(facts.number("energy_j"), series.total(row.energy_j for row in rows))
    if energy is not None:
        found.append(
            ("Energy", numbers.energy(energy), f"{numbers.watt_hours(energy)} on all devices, {series.how([view])}")
        )
    found += privacy.key_figure(view)
    return [(label, value, "" if value == numbers.UNKNOWN else detail) for label, value, detail in found]


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def comparison(views: Sequence[RunView], names: Sequence[str]) -> Table:
    """The key figures of several runs, side by side."""
    found = [{label: (value, detail) for label, value, detail in key_figures(view)} for view in views]
    labels = list(dict.fromkeys(label for figures in found for label in figures))
    rows = [("Status", *(view.status for view in views))]
    for measure in dict.fromkeys(series.measure(view) for view in views):
        before = [series.points(view, measure.key)[1] for view in views]
        rows.append((f"{measure.name} before", *(measure.show(ys[0] if ys else None) for ys in before)))
    rows += [(label, *(figures.get(label, (numbers.UNKNOWN, ""))[0] for figures in found)) for label in labels]
    return Table(caption="Key figures", head=("", *(numbers.name(name) for name in names)), rows=tuple(rows))


def rounds(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Every round as a table, folded."""
    tables = []
    for view, name in zip(views, names, strict=True):
        if view.rounds:
            measure = series.measure(view)
            rows = tuple(_round_row(row, measure) for row in view.rounds[-MOST_ROUNDS:])
            note = f"The last {MOST_ROUNDS:,} of {len(view.rounds):,} rounds." if len(view.rounds) > MOST_ROUNDS else ""
            head, rows = filled((*_HEAD[:1], measure.key, *_HEAD[1:]), rows)
            tables.append(
                Table(caption=titled("All rounds", name, len(views) > 1), head=head, rows=rows, folded=True, note=note)
            )
    return Section(title="Rounds", tables=tuple(tables), missing=() if tables else ("No round is on record yet.",))


def _round_row(row: RoundRow, measure: Measure) -> tuple[str, ...]:
    return (
        str(row.round),
        measure.show(row.eval.get(measure.key)),
        numbers.plain(row.eval.get("loss")),
        numbers.plain(row.train_loss),
        numbers.count(row.cohort_size),
        numbers.count(outcomes.failures(row.dropped)),
        numbers.count(row.dropped.get(outcomes.SURPLUS)),
        numbers.size(row.bytes_down),
        numbers.size(row.bytes_up),
        numbers.duration(row.virtual_s),
        numbers.duration(row.virtual_clock_s),
        numbers.energy(row.energy_j),
        numbers.epsilon(row.epsilon),
        numbers.duration(row.wall_s),
    )


def config(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """What differs between the runs' configs, and each config as it stands."""
    several, tables, missing = len(views) > 1, [], []
    if several:
        flat = [series.flatten(view.config) for view in views]
        keys = sorted({key for one in flat for key in one})
        differing = [key for key in keys if len({one.get(key) for one in flat}) > 1]
        rows = tuple((key, *(numbers.name(one.get(key, "not set"), 60) for one in flat)) for key in differing)
        columns = frozenset(range(len(views) + 1))
        if rows:
            tables.append(
                Table(
                    caption="What differs",
                    head=("setting", *(numbers.name(n) for n in names)),
                    rows=rows,
                    text_columns=columns,
                )
            )
        else:
            missing.append("The runs have the same config.")
    texts = [
        Fold(caption=titled("config.yaml", name, several), text=view.config_text)
        for view, name in zip(views, names, strict=True)
        if view.config_text
    ]
    if not texts:
        missing.append("No config.yaml is there.")
    return Section(title="Config", tables=tuple(tables), folds=tuple(texts), missing=tuple(missing))


def versions(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Package versions; those that differ between runs are marked."""
    found = [{str(key): str(value) for key, value in view.figures.mapping("versions").values.items()} for view in views]
    packages = sorted({package for one in found for package in one})
    if not packages:
        return Section(title="Versions", missing=("No versions are on record yet.",))
    rows = tuple(
        (numbers.name(package), *(numbers.name(one.get(package, numbers.UNKNOWN)) for one in found))
        for package in packages
    )
    marked = frozenset(place for place, row in enumerate(rows) if len(set(row[1:])) > 1)
    head = ("package", *(numbers.name(name) if len(views) > 1 else "version" for name in names))
    columns = frozenset(range(len(views) + 1))
    return Section(
        title="Versions", tables=(Table(caption="Packages", head=head, rows=rows, marked=marked, text_columns=columns),)
    )
