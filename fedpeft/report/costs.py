"""The part of the page about what training cost: seconds and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedpeft.report import numbers, outcomes, plots, reality, series
from fedpeft.report.blocks import Chart, Section, Table, filled, legend, titled
from fedpeft.report.plots import Part
from fedpeft.report.reader import RunView
from fedpeft.report.rows import ClientRow

MOST_DEVICES = 16


def time(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Virtual seconds of one round by device kind, split into download, compute and upload."""
    several, charts, tables = len(views) > 1, [], []
    for place, (view, name) in enumerate(zip(views, names, strict=True)):
        kinds = series.by_device(view)
        timed = [(kind, series.seconds(rows)) for kind, rows in kinds.items() if any(series.seconds(rows))][
            :MOST_DEVICES
        ]
        if timed:
            unit, unit_name = numbers.seconds_unit(max(sum(times) for _, times in timed))
            parts = [
                Part(name=part, colour=colour, values=[times[index] / unit for _, times in timed])
                for index, (part, colour) in enumerate((("download", 4), ("compute", 0), ("upload", 1)))
            ]
            svg = plots.rows(
                f"time-{place}",
                [numbers.name(kind, 28) for kind, _ in timed],
                parts,
                x_label=f"median per round, {unit_name}",
            )
            charts.append(Chart(title=titled("One round by device kind", name, several), svg=svg, legend=legend(parts)))
        lengths = _round_lengths(view, place)
        if lengths:
            charts.append(Chart(title=titled(lengths.title, name, several), svg=lengths.svg, note=lengths.note))
        if kinds:
            tables.append(_device_table(kinds, titled("Device kinds", name, several), folded=several))
        if beside := reality.predicted_and_measured(view):
            tables.append(replace(beside, caption=titled(beside.caption, name, several)))
    missing = () if charts else (f"No {series.how(views)} seconds are on record.",)
    return Section(
        title="Time on the devices",
        lead=f"{series.how(views).capitalize()} seconds: medians over the clients of a kind and their rounds, each "
        "part by itself.",
        charts=tuple(charts),
        tables=tuple(tables),
        missing=missing,
    )


def _round_lengths(view: RunView, place: int) -> Chart | None:
    rows = series.trained(view)
    if not series.has_length(row.virtual_s for row in rows):
        return None
    bins = series.binned(rows)
    heights = series.mean_of(bins, lambda row: row.virtual_s)
    unit, unit_name = numbers.seconds_unit(max(heights))
    part = Part(name="round", colour=0, values=[height / unit for height in heights])
    svg = plots.columns(
        f"rounds-{place}",
        [one.label for one in bins],
        [part],
        x_label="round",
        y_label=f"{series.how([view])} {unit_name}",
    )
    return Chart(title=f"{series.how([view]).capitalize()} length of each round", svg=svg, note=series.bin_note(bins))


def _device_table(kinds: dict[str, list[ClientRow]], caption: str, folded: bool) -> Table:
    rows = []
    several = len({row.rank for found in kinds.values() for row in found}) > 1
    for kind, found in list(kinds.items())[:MOST_DEVICES]:
        times = series.seconds(found)
        dropped = sum(outcomes.is_failure(row.outcome) for row in found)
        surplus = sum(row.outcome == outcomes.SURPLUS for row in found)
        rows.append(
            (
                numbers.name(kind, 28),
                _ranks(found) if several else numbers.UNKNOWN,
                numbers.count(len({row.client_id for row in found})),
                numbers.count(len(found)),
                numbers.count(dropped),
                numbers.count(surplus) if surplus else numbers.UNKNOWN,
                *(numbers.duration(part) if any(times) else numbers.UNKNOWN for part in times),
                numbers.memory(series.most(row.peak_memory_mb for row in found)),
                numbers.energy(series.median(row.energy_j for row in found)),
                numbers.energy(series.total(row.energy_j for row in found)),
            )
        )
    costs = ("download", "compute", "upload", "peak memory", "energy", "energy in all")
    head = ("device", "rank", "clients", "times asked", "dropped", "surplus", *costs)
    note = "Seconds and energy are medians per round, peak memory is the most of any." + (
        f" The {MOST_DEVICES} slowest of {len(kinds)} kinds." if len(kinds) > MOST_DEVICES else ""
    )
    shown_head, shown_rows = filled(head, rows)
    return Table(caption=caption, head=shown_head, rows=shown_rows, folded=folded, note=note)


def _ranks(found: Sequence[ClientRow]) -> str:
    """Return the rank of a kind's updates, from the least to the largest where it changed."""
    ranks = sorted({row.rank for row in found if row.rank is not None})
    return "-".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))) if ranks else numbers.UNKNOWN


def traffic(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Bytes by round, by device kind, and what one update is made of."""
    several, charts = len(views) > 1, []
    for place, (view, name) in enumerate(zip(views, names, strict=True)):
        found = (_bytes_by_round(view, place), _bytes_by_device(view, place), _update_size(view, place))
        charts += [
            Chart(title=titled(c.title, name, several), svg=c.svg, legend=c.legend, note=c.note) for c in found if c
        ]
    return Section(title="Bytes", charts=tuple(charts), missing=() if charts else ("No bytes are on record.",))


def _bytes_by_round(view: RunView, place: int) -> Chart | None:
    rows = series.trained(view)
    if not series.has_length(value for row in rows for value in (row.bytes_down, row.bytes_up)):
        return None
    bins = series.binned(rows)
    layers = [
        ("down", 0, series.mean_of(bins, lambda row: row.bytes_down)),
        ("up", 1, series.mean_of(bins, lambda row: row.bytes_up)),
        (
            "client evaluation",
            6,
            series.mean_of(bins, lambda row: (row.eval_bytes_down or 0) + (row.eval_bytes_up or 0)),
        ),
    ]
    unit, unit_name = numbers.bytes_unit(
        max(sum(heights) for heights in zip(*(layer[2] for layer in layers), strict=True))
    )
    parts = [
        Part(name=name, colour=colour, values=[v / unit for v in values])
        for name, colour, values in layers
        if any(values)
    ]
    svg = plots.columns(
        f"bytes-{place}", [one.label for one in bins], parts, x_label="round", y_label=f"{unit_name} per round"
    )
    return Chart(title="By round", svg=svg, legend=legend(parts), note=series.bin_note(bins))


def _bytes_by_device(view: RunView, place: int) -> Chart | None:
    totals = {
        kind: (sum(row.bytes_down or 0 for row in rows), sum(row.bytes_up or 0 for row in rows))
        for kind, rows in series.by_device(view).items()
    }
    shown = sorted(((k, t) for k, t in totals.items() if sum(t) > 0), key=lambda item: (-sum(item[1]), item[0]))[
        :MOST_DEVICES
    ]
    if not shown:
        return None
    unit, unit_name = numbers.bytes_unit(max(sum(pair) for _, pair in shown))
    parts = [
        Part(name=name, colour=index, values=[pair[index] / unit for _, pair in shown])
        for index, name in enumerate(("down", "up"))
    ]
    svg = plots.rows(
        f"bytes-device-{place}",
        [numbers.name(kind, 28) for kind, _ in shown],
        parts,
        x_label=f"training, whole run, {unit_name}",
    )
    return Chart(title="By device kind", svg=svg, legend=legend(parts))


def _update_size(view: RunView, place: int) -> Chart | None:
    sizes = []
    for kind, asked in series.by_device(view).items():
        rows = [row for row in asked if row.outcome not in outcomes.SILENT]
        adapter, head = series.median(row.adapter_bytes for row in rows), series.median(row.head_bytes for row in rows)
        if adapter or head:
            sizes.append((numbers.name(kind, 28), adapter or 0.0, head or 0.0))
    if not sizes:
        return None
    sizes = sorted(sizes, key=lambda item: (-(item[1] + item[2]), item[0]))[:MOST_DEVICES]
    unit, unit_name = numbers.bytes_unit(max(adapter + head for _, adapter, head in sizes))
    parts = [
        Part(name="adapter", colour=2, values=[item[1] / unit for item in sizes]),
        Part(name="head", colour=3, values=[item[2] / unit for item in sizes]),
    ]
    parts = [part for part in parts if any(part.values)]
    svg = plots.rows(f"update-{place}", [item[0] for item in sizes], parts, x_label=f"one update, median, {unit_name}")
    return Chart(title="What one update is made of", svg=svg, legend=legend(parts))
