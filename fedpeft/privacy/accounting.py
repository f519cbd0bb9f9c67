"""How much privacy a list of noised releases has spent.

The default accountant convolves privacy loss distributions (PLD): a tight upper bound, computed by the library
dp-accounting, which rounds against us. Renyi DP (RDP) is the older and looser bound that other tools report; it is
never below the truth either. Accounting by the central limit theorem (GDP) is not offered: it can lie below the truth.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Literal

from fedpeft.core.errors import ConfigError
from fedpeft.privacy.gaussian import gaussian_epsilon

Accountant = Literal["pld", "rdp"]
Kind = Literal["poisson", "full"]
Group = tuple[float, float, int]
"""Equal releases: noise multiplier, sampling rate, how many."""

ACCOUNTANTS = ("pld", "rdp")
KINDS = ("poisson", "full")
_NO_NOISE = 1e-6
_MEANINGLESS = 1e5


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Sums of clipped contributions that were let out with Gaussian noise on them.

    Attributes:
        noise_multiplier: standard deviation of the noise over the L2 sensitivity of the sum under the adjacency that
            the mechanism states. 0 is no privacy.
        sampling_rate: chance, in (0, 1], with which each unit takes part in a step, independently of all others; 1
            for all. steps: how many such sums, at least 1. kind: ``poisson`` for independent coins with that chance,
            under the adjacency "add or remove one unit" (or "replace
            its contribution by zero"); ``full`` where every unit takes part, under any adjacency.

    Raises:
        ConfigError: a value is out of range, all of them named.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1
    kind: Kind = "poisson"

    def __post_init__(self) -> None:
        problems = []
        if not (_is_number(self.noise_multiplier) and 0 <= self.noise_multiplier < math.inf):
            problems.append(f"noise_multiplier must be a finite number of at least 0, got {self.noise_multiplier!r}")
        if not (_is_number(self.sampling_rate) and 0 < self.sampling_rate <= 1):
            problems.append(f"sampling_rate must be in (0, 1], got {self.sampling_rate!r}")
        if not (isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 1):
            problems.append(f"steps must be a whole number of at least 1, got {self.steps!r}")
        if self.kind not in KINDS:
            problems.append(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        elif self.kind == "full" and self.sampling_rate != 1:
            problems.append(f"kind=full means sampling_rate=1, got {self.sampling_rate!r} (kind=poisson has others)")
        if problems:
            raise ConfigError(problems)


def epsilon(releases: Sequence[Release], delta: float, *, accountant: Accountant = "pld") -> float:
    """Return the epsilon that all releases together have spent at ``delta``, infinite where one had no noise.

    An upper bound, whatever the accountant, and by ``pld`` the smaller of both; noise below 1e-6 of the sensitivity
    counts as none. Releases of equal noise and sampling are merged, so that neither their order nor how they were cut
    into pieces changes the result. Where everyone takes part in all of them the closed form is used
    (``privacy/gaussian``); it is exact.

    Args:
        releases: what has been let out about one unit.
        delta: in (0, 1); should be well below one over the number of units, see ``check_delta``.
        accountant: ``pld`` (tight; where RDP's bound is smaller, as at a delta below 1e-15, that one) or ``rdp``.

    Raises:
        ConfigError: delta is not in (0, 1), or there is no such accountant.

    Example:
        >>> spent = [Release(noise_multiplier=1.0, sampling_rate=0.01, steps=1000)]
        >>> f"{epsilon(spent, 1e-5):.2f}, by RDP {epsilon(spent, 1e-5, accountant='rdp'):.2f}"
        '1.83, by RDP 2.10'
    """
    problems = delta_problems(delta)
    if accountant not in ACCOUNTANTS:
        problems.append(f"accountant must be one of {', '.join(ACCOUNTANTS)}, got {accountant!r}")
    if problems:
        raise ConfigError(problems)
    groups = _merge(releases)
    if not groups:
        return 0.0
    if groups[0][0] < _NO_NOISE:
        return math.inf
    return _rdp(groups, delta) if accountant == "rdp" else _pld(groups, delta)


def named(epsilon: float, epsilon_rdp: float) -> Accountant:
    """Return whose bound an epsilon by ``pld`` is: RDP's where that is the smaller one.

    Example:
        >>> named(1.5, 2.0), named(2.0, 2.0), named(math.inf, math.inf)
        ('pld', 'rdp', 'pld')
    """
    return "rdp" if epsilon == epsilon_rdp < math.inf else "pld"


def delta_problems(delta: float) -> list[str]:
    """Return what is wrong with ``delta``, nothing where it lies in (0, 1)."""
    return [] if _is_number(delta) and 0 < delta < 1 else [f"delta must be in (0, 1), got {delta!r}"]


def check_delta(delta: float, population: int) -> None:
    """Refuse a delta at which publishing some unit's data outright would count as private.

    Letting out the data of one unit chosen at random is (0, 1 / population)-DP, so delta must be below that, better
    far below.

    Args:
        delta: the promised delta.
        population: number of units: examples of a client, or registered clients.

    Raises:
        ConfigError: delta is not in (0, 1 / population).
    """
    problems = delta_problems(delta)
    if not problems and delta * population >= 1:
        problems.append(
            f"privacy.delta must be below 1 / {population}, one over the number of units, got {delta!r} (set it to"
            f" {population**-1.1:.1e} or less)"
        )
    if problems:
        raise ConfigError(problems)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _merge(releases: Sequence[Release]) -> tuple[Group, ...]:
    """Return equal releases as one, sorted by noise, so that any cut and order of them gives the same result."""
    steps: Counter[tuple[float, float]] = Counter()
    for one in releases:
        steps[float(one.noise_multiplier), float(one.sampling_rate)] += one.steps
    return tuple((*key, count) for key, count in sorted(steps.items()))


@lru_cache(maxsize=256)
def _rdp(groups: tuple[Group, ...], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _quiet():
        for noise, rate, steps in groups:
            accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
            # Rounding makes the library's divergences wrong by some 1e-14 a step; tiny ones come out negative and would
            # count as nothing. A Gaussian release with a divergence of 1e-13 a step on top is more than what is lost.
            accountant.compose(GaussianDpEvent(1 / math.sqrt(2e-13 * steps)))
        return float(accountant.get_epsilon(delta))


def pld_epsilon(groups: tuple[Group, ...], delta: float, interval: float) -> float:
    """Return epsilon by privacy loss distributions whose losses are rounded up to multiples of ``interval``."""
    mu = math.sqrt(math.fsum(steps / noise**2 for noise, rate, steps in groups if rate == 1))
    if all(rate == 1 for _, rate, _ in groups):
        return gaussian_epsilon(mu, delta)
    with _quiet():
        return _composed(groups, delta, interval, mu)


def _composed(groups: tuple[Group, ...], delta: float, interval: float, mu: float) -> float:
    """Return epsilon of sampled releases and, where mu is above 0, of a Gaussian mechanism with it."""
    parts = [_one_step(noise, rate, interval).self_compose(steps) for noise, rate, steps in groups if rate < 1]
    if mu:
        parts.append(_one_step(1 / mu, 1.0, interval))
    return float(reduce(lambda one, other: one.compose(other), parts).get_epsilon_for_delta(delta))


@lru_cache(maxsize=256)
def _pld(groups: tuple[Group, ...], delta: float) -> float:
    if all(rate == 1 for _, rate, _ in groups):
        return pld_epsilon(groups, delta, 1.0)
    bound = _rdp(groups, delta)
    # Beyond all meaning the looser bound will do; the library's arithmetic would overflow. Losses that it cuts off
    # count as infinite, and at a delta below their mass so does its epsilon.
    return bound if bound > _MEANINGLESS else min(bound, pld_epsilon(groups, delta, interval_for(groups, bound)))


@lru_cache(maxsize=8)
def _one_step(noise: float, rate: float, interval: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)


def interval_for(groups: tuple[Group, ...], bound: float) -> float:
    """Return the width of the cells into which privacy losses are rounded up.

    At most 1e-3 and a sixteenth of a step's deviation, because rounding adds up over the steps: that makes epsilon
    too large by some 3e-4 of itself. But wide enough that neither the widest single step nor the sum has much more
    than 1e5 cells, because that only costs time. A power of two times 1e-4, so that a growing run finds its single
    steps in the cache.

    Args:
        groups: the releases.
        bound: an upper bound of their epsilon.
    """
    steps = sum(count for *_, count in groups)
    variance = math.fsum(count * rate**2 * math.expm1(min(noise**-2, 50.0)) for noise, rate, count in groups)
    fine = min(1e-3, math.sqrt(variance / steps) / 16)
    widest = max(_largest_loss(noise, rate) for noise, rate, _ in groups)
    wanted = max(fine, bound / 1e5, widest / 5e4, 1e-6)
    return 1e-4 * 2.0 ** math.floor(math.log2(wanted / 1e-4))


def _largest_loss(noise: float, rate: float) -> float:
    """Return the privacy loss of one step at ten standard deviations."""
    loss = 0.5 / noise**2 + 10 / noise
    return loss + math.log(rate) if loss > 700 else math.log1p(rate * math.expm1(loss))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from telling of orders that it leaves out, and numpy of what overflows.

    Leaving an order out only makes the bound larger, and so does an overflow, which is infinite.
    """
    import numpy as np

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    log = logging.getLogger("absl")
    log.addFilter(keep)
    try:
        with np.errstate(over="ignore"):
            yield
    finally:
        log.removeFilter(keep)
