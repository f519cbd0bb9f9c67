"""The part of the page about the data: who holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpeft.report import numbers, plots
from fedpeft.report.blocks import Chart, Section, legend, titled
from fedpeft.report.plots import NUM_COLOURS, Part
from fedpeft.report.reader import RunView

MOST_CLIENTS = 40
_OTHER = "other"


def data(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Who holds what: examples by client, split by group and by label."""
    title, charts, missing = "Who holds what", [], []
    known = [(place, view.data, name) for place, (view, name) in enumerate(zip(views, names, strict=True)) if view.data]
    if not known:
        return Section(title=title, missing=("The runs say nothing of how the data is split.",))
    several = any(found.clients != known[0][1].clients for _, found, _ in known)
    same = not several and len(views) > 1
    for place, found, name in known if several else known[:1]:
        clients = found.clients[:MOST_CLIENTS]
        for what, order in (("groups", found.groups), ("labels", found.labels)):
            parts = _layers([getattr(client, what) for client in clients], order)
            if parts:
                svg = plots.columns(
                    f"data-{what}-{place}",
                    [str(c.client_id) for c in clients],
                    parts,
                    x_label="client",
                    y_label="training examples",
                    whole=True,
                )
                heading = titled(f"Examples by {what[:-1]}", name, several)
                charts.append(Chart(title=heading, svg=svg, legend=legend(parts)))
        total = found.num_clients or len(found.clients)
        if total > len(clients):
            missing.append(f"{titled('The charts show', name, several)} the first {len(clients)} of {total:,} clients.")
    first = known[0][1]
    sizes = [numbers.count(size) for size in (first.num_train, first.num_clients, first.num_eval)]
    lead = f"{sizes[0]} training examples on {sizes[1]} clients; {sizes[2]} held out on the server."
    lead = "" if several else lead + (" All runs share this split." if same and len(known) == len(views) else "")
    return Section(title=title, lead=lead, charts=tuple(charts), missing=tuple(missing))


def _layers(counts: Sequence[Mapping[str, float]], order: Sequence[str]) -> list[Part]:
    """One layer a name, in ``order`` and then by size; beyond the palette the rest is one layer."""
    totals: dict[str, float] = dict.fromkeys(order, 0.0)
    for client in counts:
        for name, number in client.items():
            totals[name] = totals.get(name, 0.0) + number
    names = [name for name, total in totals.items() if total > 0]
    if len(names) > NUM_COLOURS:
        names = sorted(names, key=lambda name: -totals[name])[: NUM_COLOURS - 1]
    parts = [
        Part(name=name, colour=place, values=[client.get(name, 0.0) for client in counts])
        for place, name in enumerate(names)
    ]
    if len(names) < sum(total > 0 for total in totals.values()):
        rest = [sum(client.values()) - sum(client.get(name, 0.0) for name in names) for client in counts]
        parts.append(Part(name=_OTHER, colour=NUM_COLOURS - 1, values=rest))
    return parts
