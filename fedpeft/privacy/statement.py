"""What a run promises: printed at start, kept in ``privacy.json``, shown in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from decimal import ROUND_CEILING, Decimal
from typing import Any

from fedpeft.core.errors import PrivacyError

STATEMENT = "privacy.json"
"""Name of the file that a run directory keeps its statement in."""
TERMS = "terms"
"""What that file keeps of the settings that the promise is made of."""
FITTED = "fitted by each device to its own examples"
KEPT = "known to each device alone"
OF_THE_RUN = frozenset({"spent", "releases", TERMS})
"""What that file says besides: epsilon so far, how many releases it came from, and the terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStatement:
    """One privacy promise. An epsilon means nothing without the rest of it.

    Attributes:
        unit: whose presence is hidden: ``one example of a client``, ``one client``.
        adjacency: which two data sets must look alike, e.g. ``add or remove one client``.
        mechanism: what is clipped and noised, where.
        sampling: how the units of a step are drawn.
        noise_multiplier: standard deviation of the noise over the sensitivity; the least where clients differ, None
            where each device fits its own and keeps it to itself.
        clip_norm: L2 norm that a unit's contribution is clipped to.
        sampling_rate: chance with which a unit takes part in a step, 1 for all; the largest where clients differ, None
            where only each device knows its own.
        steps: releases that are planned for the whole run; the most where clients differ, None like the rate.
        delta: of (epsilon, delta)-DP.
        epsilon: what the planned steps will have spent, infinite without noise.
        epsilon_rdp: the same by RDP, None where not computed.
        accountant: how epsilon is computed.
        trust: who sees what without noise.
        not_covered: sentences on what the promise does not cover.
        warnings: sentences on what makes it weak.
        noise_multiplier_most: the most where clients differ in it, None where they do not.
        sampling_rate_least: the least where clients differ in it, None where they do not.
        steps_least: the fewest where clients differ in them, None where they do not.
    """

    unit: str
    adjacency: str
    mechanism: str
    sampling: str
    noise_multiplier: float | None
    clip_norm: float
    sampling_rate: float | None
    steps: int | None
    delta: float
    epsilon: float
    accountant: str
    trust: str
    epsilon_rdp: float | None = None
    not_covered: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    noise_multiplier_most: float | None = None
    sampling_rate_least: float | None = None
    steps_least: int | None = None

    def lines(self) -> list[str]:
        """Return the statement for people, ``name: text`` on each line."""
        steps = "all its steps" if self.steps is None else counted(self.steps, "step")
        if self.steps_least is not None:
            steps = f"{self.steps_least:,} to {steps} by client"
        spent = f"{show_epsilon(self.epsilon)} at delta {self.delta:g} after {steps}"
        beside = "" if self.epsilon_rdp is None else f"; {show_epsilon(self.epsilon_rdp)} by RDP"
        rows = {
            "protects": f"{self.unit} ({self.adjacency})",
            "epsilon": f"{spent} ({self.accountant.upper()}{beside})",
            "mechanism": f"{self.mechanism}; clip norm {self.clip_norm:g}, noise multiplier "
            f"{show_span(self.noise_multiplier, self.noise_multiplier_most) or FITTED}",
            "sampling": f"{self.sampling}; rate {show_span(self.sampling_rate_least, self.sampling_rate) or KEPT}",
            "trust": self.trust,
        }
        width = max(map(len, (*rows, "not covered")))
        told = [f"{name:{width}}  {text}" for name, text in rows.items()]
        told[2:2] = [f"{'warning':{width}}  {sentence}" for sentence in self.warnings]
        return told + [f"{'not covered':{width}}  {sentence}" for sentence in self.not_covered]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite epsilon is the text ``inf``, because JSON has no such number."""
        data = asdict(self)
        for name in ("epsilon", "epsilon_rdp"):
            data[name] = "inf" if data[name] == math.inf else data[name]
        return {**data, "not_covered": list(self.not_covered), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrivacyStatement:
        """Return the statement that ``to_dict`` wrote, whatever a run has added of itself.

        Raises:
            PrivacyError: names are missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        missing, unknown = sorted(known - data.keys()), sorted(data.keys() - known - OF_THE_RUN)
        if missing or unknown:
            raise PrivacyError(
                f"this is no privacy statement: missing {', '.join(missing) or 'nothing'},"
                f" unknown {', '.join(unknown) or 'nothing'} (privacy.json was written by another version or edited)"
            )
        values = {name: value for name, value in data.items() if name in known}
        for name in ("epsilon", "epsilon_rdp"):
            values[name] = math.inf if values[name] == "inf" else values[name]
        return cls(**{**values, **{name: tuple(values[name]) for name in ("not_covered", "warnings")}})


def counted(number: int, thing: str) -> str:
    """Return so many things.

    Example:
        >>> counted(1, "release"), counted(1200, "step")
        ('1 release', '1,200 steps')
    """
    return f"{number:,} {thing}{'s' * (number != 1)}"


def show_span(least: float | None, most: float | None, digits: int = 6) -> str:
    """Return a number, or the two between which those of all clients lie; None is where there is no other.

    Example:
        >>> show_span(None, 0.25), show_span(0.8, 1.25)
        ('0.25', '0.8 to 1.25 by client')
    """
    known = [f"{one:.{digits}g}" for one in (least, most) if one is not None]
    return f"{known[0]} to {known[1]} by client" if len(known) == 2 else "".join(known)


def show_epsilon(epsilon: float, digits: int = 4) -> str:
    """Return epsilon rounded up to so many significant digits, never below what it is."""
    if epsilon == math.inf:
        return "infinite (no privacy)"
    if epsilon == 0:
        return "0"
    # Decimal arithmetic, because the float nearest to a rounded-up decimal may lie below it.
    exact = Decimal(epsilon)
    return str(exact.quantize(Decimal(1).scaleb(min(exact.adjusted() + 1 - digits, 0)), rounding=ROUND_CEILING))
