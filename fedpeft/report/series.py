"""Series out of a run's rows: pure functions, no drawing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.report import outcomes
from fedpeft.report.measure import ACCURACY, Measure, measure_of
from fedpeft.report.reader import RunView
from fedpeft.report.rows import ClientRow, RoundRow

MOST_BARS = 48
_OF_A_POPULATION = re.compile(r"(.+):(\d)\d-\d\d")
"""Name of a device that was drawn from a population: fleet, hundredth of speed, hundredth of bandwidth."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Consecutive rounds that share one bar."""

    label: str
    rounds: tuple[RoundRow, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How one model did over the clients, by one measure: an entry for each evaluated round.

    Attributes:
        rounds: the rounds.
        mean: mean of the clients.
        worst: mean of the tenth of the clients that fares worst.
        lower: a quarter of the clients has less.
        upper: a quarter of the clients has more.
    """

    rounds: list[int]
    mean: list[float]
    worst: list[float]
    lower: list[float]
    upper: list[float]


def metric(row: RoundRow, name: str) -> float | None:
    """Return a metric of a round, ``train_loss`` included."""
    return row.train_loss if name == "train_loss" else row.eval.get(name)


def measure(view: RunView) -> Measure:
    """Return what the run is measured by."""
    return measure_of(view.figures.numbers("initial"), *(row.eval for row in view.rounds))


def positions(view: RunView, axis: str) -> list[float | None]:
    """Return where rounds lie on ``axis``: ``round``, ``clock`` (virtual seconds) or ``bytes`` (of training)."""
    if axis == "round":
        return [float(row.round) for row in view.rounds]
    if axis == "clock":
        return [0.0 if row.round == 0 else row.virtual_clock_s for row in view.rounds]
    total, found = 0.0, []
    for row in view.rounds:
        total += (row.bytes_down or 0) + (row.bytes_up or 0)
        found.append(total)
    return list(found)


def points(view: RunView, name: str, axis: str = "round") -> tuple[list[float], list[float]]:
    """Return a metric against ``axis``, without the rounds where either is unknown.

    A run that holds no round 0 gets its first point from the summary's ``initial``.
    """
    places = positions(view, axis)
    pairs = [(x, metric(row, name)) for x, row in zip(places, view.rounds, strict=True)]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    initial = view.figures.numbers("initial").get(name)
    if initial is not None and not any(row.round == 0 for row in view.rounds):
        known.insert(0, (0.0, initial))
    return [x for x, _ in known], [y for _, y in known]


def has_length(values: Iterable[float | None]) -> bool:
    """Whether an axis goes anywhere: some value is known and above zero."""
    return any(value is not None and value > 0 for value in values)


def group_names(views: Sequence[RunView], prefix: str = "accuracy/") -> list[str]:
    """Return the groups that have a metric of their own, in the order of the data where it is known."""
    seen = {
        key.removeprefix(prefix) for view in views for row in view.rounds for key in row.eval if key.startswith(prefix)
    }
    known = [name for view in views if view.data for name in view.data.groups]
    return list(dict.fromkeys([name for name in known if name in seen] + sorted(seen)))


def binned(rows: Sequence[RoundRow], most: int = MOST_BARS) -> list[Bin]:
    """Put rounds into at most ``most`` bins of equal length, in order."""
    width = max(1, -(-len(rows) // most))
    chunks = [tuple(rows[start : start + width]) for start in range(0, len(rows), width)]
    return [Bin(label=str(chunk[0].round), rounds=chunk) for chunk in chunks]


def trained(view: RunView) -> list[RoundRow]:
    """Return the rounds that trained, i.e. all but round 0."""
    return [row for row in view.rounds if row.round > 0]


def bin_note(bins: Sequence[Bin]) -> str:
    """Return the sentence that says a bar stands for several rounds, where it does."""
    width = len(bins[0].rounds) if bins else 1
    return f"Each bar is the mean of {width} rounds, from the one named on." if width > 1 else ""


def mean_of(bins: Sequence[Bin], value: Callable[[RoundRow], float | None]) -> list[float]:
    """Return the mean of ``value`` in each bin; unknown counts as 0."""
    return [sum(value(row) or 0.0 for row in one.rounds) / len(one.rounds) for one in bins]


def total_bytes(view: RunView, direction: str) -> float | None:
    """Return the bytes of all rounds ``down`` or ``up``, training and evaluation on clients.

    None where none is known.
    """
    names = (f"bytes_{direction}", f"eval_bytes_{direction}")
    return total(getattr(row, name) for row in view.rounds for name in names)


def drop_reasons(views: Sequence[RunView]) -> list[str]:
    """Return the short reasons for which replies were not used, the most frequent first, and surplus at the end."""
    total: Counter[str] = Counter()
    for view in views:
        for row in view.rounds:
            for name, number in row.dropped.items():
                total[outcomes.reason(name)] += number
    found = [name for name, number in total.most_common() if number > 0]
    return sorted(found, key=lambda name: not outcomes.is_failure(name))


def dropped_for(row: RoundRow, wanted: str) -> int:
    """Return how many replies a round did not use for the short reason ``wanted``."""
    return sum(number for name, number in row.dropped.items() if outcomes.reason(name) == wanted)


def accepted(row: RoundRow) -> float | None:
    """Return how many replies a round used: of its cohort, those that were not dropped."""
    if row.cohort_size is None:
        return row.num_replies
    return max(0.0, row.cohort_size - sum(row.dropped.values()))


def kind(device: str) -> str:
    """Return the kind of a device: its name, or the tenth of its population that it is in by speed.

    Example:
        >>> kind("rpi5_8gb"), kind("flash_like:07-82"), kind("flash_like:98-12")
        ('rpi5_8gb', 'flash_like, speed 0-9 %', 'flash_like, speed 90-99 %')
    """
    found = _OF_A_POPULATION.fullmatch(device)
    if found is None:
        return device
    return f"{found[1]}, speed {int(found[2]) * 10}-{int(found[2]) * 10 + 9} %"


def by_device(view: RunView) -> dict[str, list[ClientRow]]:
    """Return the client rows of each device kind, the kinds with the longest median first."""
    kinds: dict[str, list[ClientRow]] = {}
    for row in view.clients:
        kinds.setdefault(kind(row.device), []).append(row)
    return dict(sorted(kinds.items(), key=lambda item: (-sum(seconds(item[1])), item[0])))


def seconds(rows: Sequence[ClientRow]) -> tuple[float, float, float]:
    """Return the median seconds of download, compute and upload over the replies that came, late ones included."""
    found = [(row.down_s, row.compute_s, row.up_s) for row in rows if row.outcome not in outcomes.SILENT]
    known = [times for times in found if None not in times]
    if not known:
        return 0.0, 0.0, 0.0
    down, compute, up = np.median(np.asarray(known, dtype=float), axis=0)
    return float(down), float(compute), float(up)


def how(views: Sequence[RunView]) -> str:
    """Return how seconds and joules came about: ``simulated``, ``measured``, or both."""
    real = {view.is_real for view in views}
    return "simulated or measured" if len(real) > 1 else "measured" if real == {True} else "simulated"


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the known values, None where none is."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def most(values: Iterable[float | None]) -> float | None:
    """Return the largest of the known values, None where none is."""
    return max((value for value in values if value is not None), default=None)


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values, None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def spread(view: RunView, measure: Measure = ACCURACY) -> Spread:
    """Return mean, mean of the worst tenth (rounded up) and quartiles over the clients, by evaluated round.

    Where the run holds no line a client, the server's own mean and worst tenth stand in, without quartiles.
    """
    values: dict[int, list[float]] = {}
    for row in view.evaluations:
        if (value := row.by(measure.key)) is not None:
            values.setdefault(row.round, []).append(value)
    if not values:
        return _recorded_spread(view, measure)
    result = Spread(rounds=sorted(values), mean=[], worst=[], lower=[], upper=[])
    for number in result.rounds:
        ordered = np.sort(np.asarray(values[number]))
        result.mean.append(float(ordered.mean()))
        tenth = -(-len(ordered) // 10)
        result.worst.append(float((ordered[-tenth:] if measure.low_is_good else ordered[:tenth]).mean()))
        result.lower.append(float(np.quantile(ordered, 0.25)))
        result.upper.append(float(np.quantile(ordered, 0.75)))
    return result


def _recorded_spread(view: RunView, measure: Measure) -> Spread:
    result = Spread(rounds=[], mean=[], worst=[], lower=[], upper=[])
    for row in view.rounds:
        mean, worst = (row.eval.get(f"client_{measure.key}_{which}") for which in ("mean", "worst_decile"))
        if mean is not None and worst is not None:
            result.rounds.append(row.round)
            result.mean.append(mean)
            result.worst.append(worst)
    return result


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return a nested config as dotted names and plain text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else str(value)
    return flat
