"""The part of the page about privacy: what the runs promise, what they have spent, and what is not covered."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpeft.privacy.statement import counted, show_span
from fedpeft.report import numbers, plots
from fedpeft.report.blocks import Chart, Facts, Section, Table, legend
from fedpeft.report.plots import Curve
from fedpeft.report.promise import PrivacyView
from fedpeft.report.reader import RunView

_LONGEST = 600
_COHORTS = (
    "The promise counts on nobody learning who was in which cohort. This page tells: keep it with the server's tables."
)
_UNCOVERED = "Not covered"
_NONE = "No promise is on record: whoever sees a client's update may learn what the client trained on."


def key_figure(view: RunView) -> list[tuple[str, str, str]]:
    """Return epsilon as a key figure (label, value, detail), [] for a run without one."""
    spent = _spent(view)
    if spent is None:
        return []
    delta = view.figures.number("delta")
    if delta is None and view.privacy:
        delta = view.privacy.delta
    planned = view.privacy.epsilon if view.privacy else None
    details = [f"delta {delta:g}"] if delta is not None else []
    details += [f"of {numbers.epsilon(planned)} planned"] if planned is not None and planned < math.inf else []
    return [("Epsilon", numbers.epsilon(spent), ", ".join(details))]


def card(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """The privacy card: the whole promise, without which an epsilon means nothing, and epsilon by round."""
    promises = [view.privacy for view in views if view.privacy]
    chart = _epsilon_chart(views, names)
    if not promises:
        return Section(title="Privacy", charts=chart, missing=() if chart else (_NONE,))
    several = len(views) > 1
    return Section(
        title="Privacy",
        lead="An epsilon means nothing without the rest of its promise.",
        facts=() if several else _facts(views[0]),
        charts=chart,
        tables=(_table(views, names),) if several else (),
        missing=(_COHORTS,) if any(promise.hides_cohorts for promise in promises) else (),
    )


def _spent(view: RunView) -> float | None:
    """Return epsilon so far: from the summary, else the last round, else the promise itself."""
    by_round = next((row.epsilon for row in reversed(view.rounds) if row.epsilon is not None), None)
    promised = view.privacy.spent if view.privacy else None
    return next((e for e in (view.figures.epsilon("epsilon"), by_round, promised) if e is not None), None)


def _facts(view: RunView) -> tuple[Facts, ...]:
    """Return the promise of one run as a card of terms, and what it does not cover as a list."""
    items = _items(view)
    terms, uncovered = [one for one in items if one[0] != _UNCOVERED], dict(items).get(_UNCOVERED, ())
    cards = (Facts(caption="The promise", items=tuple(terms)), Facts(caption=_UNCOVERED, points=uncovered))
    return tuple(card for card in cards if card.items or card.points)


def _items(view: RunView) -> list[tuple[str, tuple[str, ...]]]:
    """Return the card of one run: terms and sentences, unknown ones left out."""
    promise = view.privacy
    if promise is None:
        return [("Protects", (_NONE,))]
    adjacency = f"({promise.adjacency})" if promise.adjacency else ""
    items = [
        ("Protects", _known(f"{promise.unit} {adjacency}".strip())),
        ("Must be trusted", _known(promise.trust)),
        ("Mechanism", _known(promise.mechanism, _noise(promise))),
        ("Sampling", _known(promise.sampling, _rate(promise))),
        ("Epsilon planned", _known(_planned(view))),
        ("Warning", _known(*promise.warnings)),
        ("Epsilon spent", _known(_spent_words(view))),
        ("Ledger is damaged", _known(view.ledger_fault)),
        (_UNCOVERED, _known(*promise.not_covered)),
    ]
    return [(term, sentences) for term, sentences in items if sentences]


def _known(*sentences: str) -> tuple[str, ...]:
    return tuple(numbers.name(sentence, _LONGEST) for sentence in sentences if sentence)


def _noise(promise: PrivacyView) -> str:
    clip = "" if promise.clip_norm is None else f"clip norm {promise.clip_norm:g}"
    known = show_span(promise.noise_multiplier, promise.noise_multiplier_most, digits=4)
    noise = f"noise multiplier {known}" if known else ""
    return ", ".join(filter(None, (clip, noise)))


def _rate(promise: PrivacyView) -> str:
    known = show_span(promise.sampling_rate_least, promise.sampling_rate, digits=4)
    return f"rate {known}" if known else ""


def _planned(view: RunView) -> str:
    """Epsilon of all planned releases, with all that it depends on."""
    promise = view.privacy
    if promise is None or promise.epsilon is None:
        return ""
    words = numbers.epsilon(promise.epsilon)
    words += "" if promise.delta is None else f" at delta {promise.delta:g}"
    words += "" if promise.steps is None else f" for {counted(promise.steps, 'release')}"
    beside = "" if promise.epsilon_rdp is None else f"; {numbers.epsilon(promise.epsilon_rdp)} by RDP"
    return f"{words} ({promise.accountant.upper()}{beside})" if promise.accountant else words


def _spent_words(view: RunView) -> str:
    spent = _spent(view)
    if spent is None:
        return ""
    releases = view.privacy.releases if view.privacy else None
    words = f"{numbers.epsilon(spent)}, the most of any client"
    return words + (f"; {counted(releases, 'release')} on record" if releases else "")


def _table(views: Sequence[RunView], names: Sequence[str]) -> Table:
    """The cards of several runs side by side, a column a run."""
    cards = [dict(_items(view)) for view in views]
    terms = list(dict.fromkeys(term for card in cards for term in card))
    rows = [(term, *("; ".join(card.get(term, ())) or numbers.UNKNOWN for card in cards)) for term in terms]
    return Table(
        caption="The promises",
        head=("", *(numbers.name(name) for name in names)),
        rows=tuple(rows),
        text_columns=frozenset(range(len(views) + 1)),
        wraps=True,
    )


def _epsilon_chart(views: Sequence[RunView], names: Sequence[str]) -> tuple[Chart, ...]:
    """Epsilon by round; one run is shown with what is planned for its whole length."""
    curves = []
    for place, (view, name) in enumerate(zip(views, names, strict=True)):
        spent = [(row.round, row.epsilon) for row in view.rounds if row.epsilon is not None and row.epsilon < math.inf]
        if spent:
            xs, ys = [float(x) for x, _ in spent], [y for _, y in spent]
            curves.append(Curve(name=name if len(views) > 1 else "spent", colour=place, xs=xs, ys=ys))
    if not curves:
        return ()
    planned = views[0].privacy.epsilon if len(views) == 1 and views[0].privacy else None
    if planned is not None and planned < math.inf:
        xs = [curves[0].xs[0], max(curves[0].xs[-1], _last_round(views[0]))]
        curves.append(Curve(name="planned for the whole run", colour=6, xs=xs, ys=[planned] * 2, dashed=True))
    svg = plots.lines("epsilon", curves, x_label="round", y_label="", whole_x=True)
    return (Chart(title="Epsilon by round", svg=svg, legend=legend(curves)),)


def _last_round(view: RunView) -> float:
    planned = view.config.get("rounds")
    return float(planned) if isinstance(planned, int) else 0.0
