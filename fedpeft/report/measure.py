"""What says how good a model is: accuracy, or perplexity of a language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedpeft.report import numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A figure of merit.

    Attributes:
        key: its name among the metrics of a round.
        name: its name on the page.
        article: the indefinite article that goes with it.
        low_is_good: whether less is better.
        percent: whether it is a share 0..1.
    """

    key: str
    name: str
    article: str
    low_is_good: bool = False
    percent: bool = False

    def show(self, value: float | None) -> str:
        """Return a value as a person reads it."""
        return numbers.percent(value) if self.percent else numbers.plain(value, 2)

    def change(self, before: float | None, after: float | None) -> str:
        """Return the change between two values: ``+30.6 points``, ``-3.21``; "" where one is unknown."""
        if before is None or after is None:
            return ""
        return numbers.points(before, after) if self.percent else f"{after - before:+.2f}"

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.low_is_good else max(values)


ACCURACY = Measure(key="accuracy", name="Accuracy", article="an", percent=True)
PERPLEXITY = Measure(key="perplexity", name="Perplexity", article="a", low_is_good=True)
MEASURES = (ACCURACY, PERPLEXITY)


def measure_of(*metrics: Mapping[str, object]) -> Measure:
    """Return the measure of the run that these metrics come from; accuracy where none says."""
    return PERPLEXITY if any(PERPLEXITY.key in found for found in metrics) else ACCURACY
