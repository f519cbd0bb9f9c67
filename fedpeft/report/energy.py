"""The part of the page about what training drew and held: joules and memory."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.report import numbers, outcomes, plots, series
from fedpeft.report.blocks import Chart, Legend, Section, legend, titled
from fedpeft.report.costs import MOST_DEVICES
from fedpeft.report.plots import Part
from fedpeft.report.reader import RunView
from fedpeft.report.rows import ClientRow

_MEMORY_COLOUR, _TOO_MUCH_COLOUR = 2, outcomes.colour("memory")


def energy_and_memory(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Joules by device kind and by round, and the most memory that each kind held or would have had to."""
    several, charts = len(views) > 1, []
    for place, (view, name) in enumerate(zip(views, names, strict=True)):
        found = (_energy_by_device(view, place), _peak_memory(view, place), _energy_by_round(view, place))
        charts += [
            Chart(title=titled(c.title, name, several), svg=c.svg, legend=c.legend, note=c.note) for c in found if c
        ]
    return Section(
        title="Energy and memory on the devices",
        lead=f"{series.how(views).capitalize()} joules of download, training and upload, and memory of one training "
        "step, predicted in simulations.",
        charts=tuple(charts),
        missing=() if charts else ("No energy and no memory is on record.",),
    )


def _energy_by_device(view: RunView, place: int) -> Chart | None:
    medians = {kind: series.median(row.energy_j for row in rows) for kind, rows in series.by_device(view).items()}
    known = [(kind, joules) for kind, joules in medians.items() if joules]
    shown = sorted(known, key=lambda item: (-item[1], item[0]))[:MOST_DEVICES]
    if not shown:
        return None
    unit, unit_name = numbers.joules_unit(shown[0][1])
    part = Part(name="energy", colour=1, values=[joules / unit for _, joules in shown])
    labels = [numbers.name(kind, 28) for kind, _ in shown]
    svg = plots.rows(f"energy-device-{place}", labels, [part], x_label=f"median of one client and round, {unit_name}")
    return Chart(title="Energy by device kind", svg=svg)


def _energy_by_round(view: RunView, place: int) -> Chart | None:
    rows = series.trained(view)
    if not series.has_length(row.energy_j for row in rows):
        return None
    bins = series.binned(rows)
    heights = series.mean_of(bins, lambda row: row.energy_j)
    unit, unit_name = numbers.joules_unit(max(heights))
    part = Part(name="energy", colour=1, values=[height / unit for height in heights])
    labels = [one.label for one in bins]
    svg = plots.columns(
        f"energy-{place}", labels, [part], x_label="round", y_label=f"{unit_name} of all clients together"
    )
    return Chart(title="Energy by round", svg=svg, note=series.bin_note(bins))


def _peak_memory(view: RunView, place: int) -> Chart | None:
    """A bar a kind: the most that it held and, behind it, what the work would have taken that it was spared."""
    found = {kind: _needs(rows) for kind, rows in series.by_device(view).items()}
    known = [(kind, held, needed) for kind, (held, needed) in found.items() if held or needed]
    shown = sorted(known, key=lambda item: (-max(item[1:]), item[0]))[:MOST_DEVICES]
    if not shown:
        return None
    limits = _usable(view)
    marks = [limits.get(kind) for kind, _, _ in shown]
    unit, unit_name = numbers.memory_unit(max(series.most(marks) or 0.0, max(max(item[1:]) for item in shown)))
    parts = [
        Part(name="held at most", colour=_MEMORY_COLOUR, values=[held / unit for _, held, _ in shown]),
        Part(
            name="did not fit",
            colour=_TOO_MUCH_COLOUR,
            values=[max(0.0, needed - held) / unit for _, held, needed in shown],
        ),
    ]
    parts = [part for part in parts if any(part.values)]
    svg = plots.rows(
        f"memory-device-{place}",
        [numbers.name(kind, 28) for kind, _, _ in shown],
        parts,
        x_label=f"most of any round, {unit_name}",
        marks=[None if mark is None else mark / unit for mark in marks],
    )
    entries = legend(parts)
    if any(mark is not None for mark in marks):
        entries += (Legend(name="usable (upright mark)", colour="var(--ink)"),)
    note = "Least usable of the kind's devices." if any("speed" in kind for kind, _, _ in shown) else ""
    return Chart(title="Peak memory by device kind", svg=svg, legend=entries, note=note)


def _needs(rows: Sequence[ClientRow]) -> tuple[float, float]:
    """Return the most MiB that a kind held, and the most of work that it could not hold; 0 where not known."""
    held = series.most(row.peak_memory_mb for row in rows if row.outcome != "memory")
    needed = series.most(row.peak_memory_mb for row in rows if row.outcome == "memory")
    return held or 0.0, needed or 0.0


def _usable(view: RunView) -> dict[str, float]:
    """Return the MiB that training may take by device kind: the least of its devices; {} where not on record."""
    found: dict[str, float] = {}
    for device, usable in (view.data.usable_memory_mb if view.data else {}).items():
        kind = series.kind(device)
        found[kind] = min(found.get(kind, usable), usable)
    return found
