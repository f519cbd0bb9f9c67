"""The part of the page about the model: accuracy or perplexity, loss, and accuracy by group."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.report import numbers, plots, series
from fedpeft.report.blocks import Chart, Legend, Section, Table, legend
from fedpeft.report.measure import MEASURES, PERPLEXITY, Measure
from fedpeft.report.plots import Curve
from fedpeft.report.reader import RunView

MOST_GROUPS = 8
_GROUP_PREFIXES = ("accuracy/", "token_accuracy/")
_TOKEN_ACCURACY = Measure(key="token_accuracy", name="Next-token accuracy", article="a", percent=True)
_LOSS = Measure(key="loss", name="Loss", article="a", low_is_good=True)
_HELD_OUT_LOSS = Measure(key="loss", name="Held-out loss", article="a", low_is_good=True)
_TRAINING_LOSS = Measure(key="train_loss", name="Training loss", article="a", low_is_good=True)


def learning(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Accuracy or perplexity, and loss, against rounds, simulated time and bytes."""
    measures = [one for one in MEASURES if any(series.measure(view) == one for view in views)]
    charts = [_against(views, names, one, axis) for one in measures for axis in ("round", "clock", "bytes")]
    if PERPLEXITY in measures:
        charts.append(_against(views, names, _TOKEN_ACCURACY, "round"))
    first, clocked = charts[0], charts[1]
    charts += _losses(views, names)
    what = measures[0]
    missing = []
    if first is None:
        missing.append(f"No round has {what.article} {what.key} on record yet.")
    elif clocked is None:
        missing.append(f"The run kept no {series.how(views)} clock, so there is no {what.key} against time.")
    return Section(
        title=" and ".join(one.name if place == 0 else one.key for place, one in enumerate([*measures, _LOSS])),
        lead="On the examples that the server holds out. Round 0 is the model before training.",
        charts=tuple(chart for chart in charts if chart),
        missing=tuple(missing),
    )


def _against(views: Sequence[RunView], names: Sequence[str], measure: Measure, axis: str) -> Chart | None:
    """Chart one metric, a curve a run; None where no run knows both it and the axis."""
    found = [series.points(view, measure.key, axis) for view in views]
    longest = max((xs[-1] for xs, _ in found if xs), default=0.0)
    if not any(xs for xs, _ in found) or (axis != "round" and longest <= 0):
        return None
    unit, unit_name = {"clock": numbers.seconds_unit, "bytes": numbers.bytes_unit}.get(axis, _no_unit)(longest)
    curves = [
        Curve(name=name, colour=place, xs=[x / unit for x in xs], ys=ys)
        for place, (name, (xs, ys)) in enumerate(zip(names, found, strict=True))
        if xs
    ]
    where = {"round": "rounds", "clock": f"{series.how(views)} time", "bytes": "bytes sent"}[axis]
    x_label = {
        "round": "round",
        "clock": f"{series.how(views)} time, {unit_name}",
        "bytes": f"training bytes, down + up, {unit_name}",
    }[axis]
    svg = plots.lines(
        f"{measure.key}-{axis}", curves, x_label=x_label, y_label="", whole_x=axis == "round", percent=measure.percent
    )
    return Chart(title=f"{measure.name} by {where}", svg=svg, legend=_run_legend(curves, views))


def _no_unit(_: float) -> tuple[float, str]:
    return 1.0, ""


def _run_legend(curves: Sequence[Curve], views: Sequence[RunView]) -> tuple[Legend, ...]:
    return legend(curves) if len(views) > 1 else ()


def _losses(views: Sequence[RunView], names: Sequence[str]) -> list[Chart | None]:
    """One chart with both losses for one run; one chart a loss for several."""
    if len(views) > 1:
        return [_against(views, names, one, "round") for one in (_HELD_OUT_LOSS, _TRAINING_LOSS)]
    found = [("held-out", *series.points(views[0], "loss")), ("training", *series.points(views[0], "train_loss"))]
    curves = [Curve(name=name, colour=place, xs=xs, ys=ys) for place, (name, xs, ys) in enumerate(found) if xs]
    if not curves:
        return []
    svg = plots.lines("loss-round", curves, x_label="round", y_label="", whole_x=True)
    return [Chart(title="Loss by rounds", svg=svg, legend=legend(curves))]


def groups(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Held-out accuracy by group: a curve a group for one run, a chart a group for several."""
    prefix = next((one for one in _GROUP_PREFIXES if series.group_names(views, one)), _GROUP_PREFIXES[0])
    found = series.group_names(views, prefix)
    title = "Accuracy by group" if prefix == _GROUP_PREFIXES[0] else "Next-token accuracy by group"
    if not found:
        return Section(title=title, missing=("No accuracy by group is on record.",))
    shown, charts = found[:MOST_GROUPS], []
    if len(views) == 1:
        curves = _group_curves(views[0], shown, prefix)
        svg = plots.lines("groups", curves, x_label="round", y_label="", whole_x=True, percent=True)
        charts.append(Chart(title="Held-out accuracy", svg=svg, legend=legend(curves)))
    else:
        for number, group in enumerate(shown):
            pairs = [
                (place, name, *series.points(view, f"{prefix}{group}"))
                for place, (view, name) in enumerate(zip(views, names, strict=True))
            ]
            curves = [Curve(name=name, colour=place, xs=xs, ys=ys) for place, name, xs, ys in pairs if xs]
            svg = plots.lines(f"group-{number}", curves, x_label="round", y_label="", whole_x=True, percent=True)
            charts.append(Chart(title=numbers.name(group), svg=svg, legend=_run_legend(curves, views)))
    missing = (f"The charts show the first {len(shown)} of {len(found)} groups.",) if len(found) > len(shown) else ()
    return Section(
        title=title, charts=tuple(charts), tables=(_group_table(views, names, found, prefix),), missing=missing
    )


def _group_curves(view: RunView, shown: Sequence[str], prefix: str) -> list[Curve]:
    found = [(place, group, *series.points(view, f"{prefix}{group}")) for place, group in enumerate(shown)]
    return [Curve(name=group, colour=place, xs=xs, ys=ys) for place, group, xs, ys in found if xs]


def _group_table(views: Sequence[RunView], names: Sequence[str], found: Sequence[str], prefix: str) -> Table:
    """Before and after for one run; the last accuracy of each for several."""
    several, rows = len(views) > 1, []
    for group in found:
        cells = [numbers.name(group)]
        for view in views:
            ys = series.points(view, f"{prefix}{group}")[1]
            ends = (ys[-1:] if several else [ys[0], ys[-1]]) if ys else [None] * (1 if several else 2)
            cells += [numbers.percent(end) for end in ends]
        rows.append(tuple(cells))
    head = ("group", *(numbers.name(name) for name in names)) if several else ("group", "before", "last")
    return Table(caption="Last accuracy" if several else "Before and after", head=head, rows=tuple(rows))
