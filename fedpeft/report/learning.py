"""The part of the page about the model: accuracy, loss, groups, and how it does on the clients' own data."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.report import numbers, plots, series
from fedpeft.report.blocks import Chart, Legend, Section, Table, legend, titled
from fedpeft.report.plots import Curve
from fedpeft.report.reader import RunView

MOST_GROUPS = 8
MOST_DOTS = 150
MOST_DEVICES = 16


def learning(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Accuracy and loss against rounds, simulated time and bytes; epsilon where it was counted."""
    charts = [
        _against(views, names, "accuracy", "round"),
        _against(views, names, "accuracy", "clock"),
        _against(views, names, "accuracy", "bytes"),
        *_losses(views, names),
        _epsilon(views, names),
    ]
    missing = []
    if charts[0] is None:
        missing.append("No round has an accuracy on record yet.")
    elif charts[1] is None:
        missing.append("The run kept no simulated clock, so there is no accuracy against time.")
    return Section(
        title="Accuracy and loss",
        lead="On the examples that the server holds out. Round 0 is the model before training.",
        charts=tuple(chart for chart in charts if chart),
        missing=tuple(missing),
    )


def _against(views: Sequence[RunView], names: Sequence[str], metric: str, axis: str) -> Chart | None:
    """Chart one metric, a curve a run; None where no run knows both it and the axis."""
    found = [series.points(view, metric, axis) for view in views]
    longest = max((xs[-1] for xs, _ in found if xs), default=0.0)
    if not any(xs for xs, _ in found) or (axis != "round" and longest <= 0):
        return None
    unit, unit_name = {"clock": numbers.seconds_unit, "bytes": numbers.bytes_unit}.get(axis, _no_unit)(longest)
    curves = [
        Curve(name=name, colour=place, xs=[x / unit for x in xs], ys=ys)
        for place, (name, (xs, ys)) in enumerate(zip(names, found, strict=True))
        if xs
    ]
    what = {"accuracy": "Accuracy", "loss": "Held-out loss", "train_loss": "Training loss"}[metric]
    where = {"round": "rounds", "clock": "simulated time", "bytes": "bytes sent"}[axis]
    x_label = {
        "round": "round",
        "clock": f"simulated time, {unit_name}",
        "bytes": f"training bytes, down + up, {unit_name}",
    }[axis]
    svg = plots.lines(
        f"{metric}-{axis}", curves, x_label=x_label, y_label="", whole_x=axis == "round", percent=metric == "accuracy"
    )
    return Chart(title=f"{what} by {where}", svg=svg, legend=_run_legend(curves, views))


def _no_unit(_: float) -> tuple[float, str]:
    return 1.0, ""


def _run_legend(curves: Sequence[Curve], views: Sequence[RunView]) -> tuple[Legend, ...]:
    return legend(curves) if len(views) > 1 else ()


def _losses(views: Sequence[RunView], names: Sequence[str]) -> list[Chart | None]:
    """One chart with both losses for one run; one chart a loss for several."""
    if len(views) > 1:
        return [_against(views, names, "loss", "round"), _against(views, names, "train_loss", "round")]
    found = [("held-out", *series.points(views[0], "loss")), ("training", *series.points(views[0], "train_loss"))]
    curves = [Curve(name=name, colour=place, xs=xs, ys=ys) for place, (name, xs, ys) in enumerate(found) if xs]
    if not curves:
        return []
    svg = plots.lines("loss-round", curves, x_label="round", y_label="", whole_x=True)
    return [Chart(title="Loss by rounds", svg=svg, legend=legend(curves))]


def _epsilon(views: Sequence[RunView], names: Sequence[str]) -> Chart | None:
    curves = []
    for place, (view, name) in enumerate(zip(views, names, strict=True)):
        known = [(float(row.round), row.epsilon) for row in view.rounds if row.epsilon is not None]
        if known:
            curves.append(Curve(name=name, colour=place, xs=[x for x, _ in known], ys=[y for _, y in known]))
    if not curves:
        return None
    svg = plots.lines("epsilon", curves, x_label="round", y_label="", whole_x=True)
    return Chart(title="Privacy spent (epsilon)", svg=svg, legend=_run_legend(curves, views))


def groups(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Held-out accuracy by group: a curve a group for one run, a chart a group for several."""
    found = series.group_names(views)
    title = "Accuracy by group"
    if not found:
        return Section(title=title, missing=("No accuracy by group is on record.",))
    shown, charts = found[:MOST_GROUPS], []
    if len(views) == 1:
        curves = _group_curves(views[0], shown)
        svg = plots.lines("groups", curves, x_label="round", y_label="", whole_x=True, percent=True)
        charts.append(Chart(title="Held-out accuracy", svg=svg, legend=legend(curves)))
    else:
        for number, group in enumerate(shown):
            pairs = [
                (place, name, *series.points(view, f"accuracy/{group}"))
                for place, (view, name) in enumerate(zip(views, names, strict=True))
            ]
            curves = [Curve(name=name, colour=place, xs=xs, ys=ys) for place, name, xs, ys in pairs if xs]
            svg = plots.lines(f"group-{number}", curves, x_label="round", y_label="", whole_x=True, percent=True)
            charts.append(Chart(title=numbers.name(group), svg=svg, legend=_run_legend(curves, views)))
    missing = (f"The charts show the first {len(shown)} of {len(found)} groups.",) if len(found) > len(shown) else ()
    return Section(title=title, charts=tuple(charts), tables=(_group_table(views, names, found),), missing=missing)


def _group_curves(view: RunView, shown: Sequence[str]) -> list[Curve]:
    found = [(place, group, *series.points(view, f"accuracy/{group}")) for place, group in enumerate(shown)]
    return [Curve(name=group, colour=place, xs=xs, ys=ys) for place, group, xs, ys in found if xs]


def _group_table(views: Sequence[RunView], names: Sequence[str], found: Sequence[str]) -> Table:
    """Before and after for one run; the last accuracy of each for several."""
    several, rows = len(views) > 1, []
    for group in found:
        cells = [numbers.name(group)]
        for view in views:
            ys = series.points(view, f"accuracy/{group}")[1]
            ends = (ys[-1:] if several else [ys[0], ys[-1]]) if ys else [None] * (1 if several else 2)
            cells += [numbers.percent(end) for end in ends]
        rows.append(tuple(cells))
    head = ("group", *(numbers.name(name) for name in names)) if several else ("group", "before", "last")
    return Table(caption="Last accuracy" if several else "Before and after", head=head, rows=tuple(rows))


def client_evaluation(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """How the model does on the clients' own held-out examples: mean, worst tenth, spread, and who is worst off."""
    spreads = [series.spread(view) for view in views]
    title = "Accuracy on the clients' own data"
    if not any(found.rounds for found in spreads):
        return Section(title=title, missing=("No round was evaluated on the clients.",))
    tables: tuple[Table, ...] = ()
    charts: list[Chart] = []
    if max(len(found.rounds) for found in spreads) == 1:
        tables = (_spread_table(spreads, names),)
    elif len(views) == 1:
        charts = [_spread_chart(spreads[0])]
    else:
        charts = [_spread_by_run(spreads, names, "mean"), _spread_by_run(spreads, names, "worst")]
    strips = [
        _strip_chart(view, name, place, len(views) > 1)
        for place, (view, name) in enumerate(zip(views, names, strict=True))
    ]
    return Section(
        title=title,
        lead="The worst tenth is the mean accuracy of the tenth of the clients that fare worst.",
        charts=(*charts, *(chart for chart in strips if chart)),
        tables=tables,
    )


def _spread_table(spreads: Sequence[series.Spread], names: Sequence[str]) -> Table:
    """One column a run, for runs that were evaluated on the clients once: a curve of one point says little."""
    rows = [("after round", *(str(found.rounds[0]) if found.rounds else numbers.UNKNOWN for found in spreads))]
    for label, values in (
        ("mean of the clients", [found.mean for found in spreads]),
        ("worst tenth", [found.worst for found in spreads]),
        ("a quarter is below", [found.lower for found in spreads]),
        ("a quarter is above", [found.upper for found in spreads]),
    ):
        rows.append((label, *(numbers.percent(found[0] if found else None) for found in values)))
    head = ("", *(numbers.name(name) for name in names)) if len(names) > 1 else ("", "accuracy")
    return Table(caption="Mean, worst tenth and spread", head=head, rows=tuple(rows))


def _spread_chart(found: series.Spread) -> Chart:
    curves = [
        Curve(
            name="mean of the clients",
            colour=0,
            xs=found.rounds,
            ys=found.mean,
            band=(found.lower, found.upper) if found.lower else None,
        ),
        Curve(name="worst tenth", colour=5, xs=found.rounds, ys=found.worst),
    ]
    svg = plots.lines("client-spread", curves, x_label="round", y_label="", whole_x=True, percent=True)
    note = "The band holds the middle half of the clients." if found.lower else ""
    return Chart(title="Mean, worst tenth and spread", svg=svg, legend=legend(curves), note=note)


def _spread_by_run(spreads: Sequence[series.Spread], names: Sequence[str], which: str) -> Chart:
    curves = [
        Curve(
            name=name,
            colour=place,
            xs=found.rounds,
            ys=getattr(found, which),
            band=(found.lower, found.upper) if which == "mean" and found.lower else None,
        )
        for place, (name, found) in enumerate(zip(names, spreads, strict=True))
        if found.rounds
    ]
    svg = plots.lines(f"client-{which}", curves, x_label="round", y_label="", whole_x=True, percent=True)
    title, note = (
        ("Mean of the clients", "Each band holds the middle half of the clients.")
        if which == "mean"
        else ("Worst tenth", "")
    )
    return Chart(title=title, svg=svg, legend=legend(curves), note=note)


def _strip_chart(view: RunView, name: str, place: int, several: bool) -> Chart | None:
    """A dot a client by device kind, in the last evaluated round."""
    rows = [row for row in view.evaluations if row.accuracy is not None]
    if not rows:
        return None
    last = max(row.round for row in rows)
    kinds: dict[str, list[float]] = {}
    for row in rows:
        if row.round == last and row.accuracy is not None:
            kinds.setdefault(numbers.name(row.device, 24), []).append(row.accuracy)
    ordered = sorted(kinds.items(), key=lambda item: (series.median(item[1]) or 0.0, item[0]))[:MOST_DEVICES]
    dots = [sorted(found)[:: max(1, -(-len(found) // MOST_DOTS))] for _, found in ordered]
    svg = plots.strips(f"client-devices-{place}", [kind for kind, _ in ordered], dots, x_label="accuracy")
    return Chart(
        title=titled(f"By device kind, round {last}", name, several),
        svg=svg,
        note="One dot a client; the upright bar is the median.",
    )
