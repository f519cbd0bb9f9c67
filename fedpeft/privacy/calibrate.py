"""How much noise a privacy budget asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

from fedpeft.core.errors import ConfigError
from fedpeft.privacy import accounting
from fedpeft.privacy.accounting import ACCOUNTANTS, Accountant, Release, delta_problems
from fedpeft.privacy.gaussian import gaussian_mu

Spent = Callable[[float], float]
"""Epsilon by noise multiplier."""

LEAST, MOST = 0.05, 1e5
"""Noise multipliers between which one is looked for."""


def analytic_gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the least standard deviation of Gaussian noise that makes one release (epsilon, delta)-DP.

    The analytic Gaussian mechanism (Balle and Wang 2018, Algorithm 1): exact for every epsilon, where the classical
    sqrt(2 ln(1.25 / delta)) / epsilon holds for epsilon of at most 1 only. Rounded up by less than 1e-11 of itself.

    Args:
        epsilon: above 0.
        delta: in (0, 1).
        sensitivity: the most by which the released quantity can change in L2 norm between two neighbouring data sets,
            above 0.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> round(analytic_gaussian_sigma(4.37718, 1e-5, 1.0), 4)
        1.0
    """
    problems = _epsilon_problems(epsilon) + delta_problems(delta)
    if not 0 < sensitivity < math.inf:
        problems.append(f"sensitivity must be a finite number above 0, got {sensitivity!r}")
    if problems:
        raise ConfigError(problems)
    return sensitivity / gaussian_mu(epsilon, delta) * (1 + 1e-12)


def noise_multiplier_for(
    epsilon: float, delta: float, *, sampling_rate: float, steps: int, accountant: Accountant = "pld"
) -> float:
    """Return the smallest noise multiplier of four significant digits that spends at most ``epsilon``.

    Args:
        epsilon: what may be spent, above 0.
        delta: in (0, 1).
        sampling_rate: chance with which a unit takes part in a step, in (0, 1]; 1 for all.
        steps: planned releases, at least 1.
        accountant: ``pld`` (less noise) or ``rdp``.

    Raises:
        ConfigError: an argument is out of range, or no noise multiplier in 0.05 .. 100,000 fits.

    Example:
        >>> noise_multiplier_for(2.0, 1e-5, sampling_rate=0.01, steps=1000)
        0.9592
    """
    problems = _epsilon_problems(epsilon) + delta_problems(delta)
    if accountant not in ACCOUNTANTS:
        problems.append(f"accountant must be one of {', '.join(ACCOUNTANTS)}, got {accountant!r}")
    try:
        Release(noise_multiplier=1.0, sampling_rate=sampling_rate, steps=steps)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return _search(float(epsilon), float(delta), float(sampling_rate), steps, accountant)


def rough_noise_multiplier(epsilon: float, delta: float, *, sampling_rate: float, steps: int) -> float:
    """Return about what `noise_multiplier_for` would, at once: to compare plans with, never to add noise by.

    Args:
        epsilon: what may be spent, above 0.
        delta: in (0, 1).
        sampling_rate: chance with which a unit takes part in a step, in (0, 1].
        steps: planned releases, at least 1.
    """
    return _guess(epsilon, delta, sampling_rate, steps)


@lru_cache(maxsize=256)
def _search(target: float, delta: float, rate: float, steps: int, accountant: Accountant) -> float:
    def spent(noise: float, by: Accountant = accountant) -> float:
        release = Release(noise_multiplier=noise, sampling_rate=rate, steps=steps)
        return accounting.epsilon([release], delta, accountant=by)

    guess = _guess(target, delta, rate, steps)
    interval = 8 * accounting.interval_for(((guess, rate, steps),), target)

    def roughly(noise: float) -> float:
        by_pld = math.inf
        if accountant == "pld":
            by_pld = accounting.pld_epsilon(((noise, rate, steps),), delta, interval)
        return by_pld if by_pld < math.inf else spent(noise, "rdp")

    what = f"epsilon {target:g} at delta {delta:g}, sampling rate {rate:g} and {steps:,} steps"
    if spent(LEAST, "rdp") <= target:
        raise ConfigError(f"{what} is reached with hardly any noise (multiplier {LEAST:g}): ask for a smaller epsilon")
    found = _climb(spent, _near(spent, roughly, target, guess), target)
    if found is None:
        raise ConfigError(
            f"{what} is out of reach of a noise multiplier of {MOST:g}: allow a larger epsilon or "
            "delta, or plan fewer steps"
        )
    return found


def _guess(target: float, delta: float, rate: float, steps: int) -> float:
    """Return the noise multiplier that the central limit theorem asks for: no bound, only where to look.

    mu = q sqrt(T (exp(1 / z^2) - 1)) (Bu, Dong, Long and Su 2020, "Deep learning with Gaussian differential
    privacy").
    """
    mu = gaussian_mu(target, delta)
    guess = math.sqrt(steps) / mu if rate == 1 else 1 / math.sqrt(math.log1p((mu / rate) ** 2 / steps))
    return min(max(guess, LEAST), MOST)


def _near(spent: Spent, roughly: Spent, target: float, guess: float) -> float:
    """Return about the noise multiplier at which ``target`` is spent: a root of ``roughly``, put right."""
    from scipy.optimize import brentq

    @cache
    def excess(log_noise: float) -> float:
        return math.log(max(roughly(math.exp(log_noise)), 1e-12) / target)

    low = high = math.log(guess)
    while excess(low) < 0 and low > math.log(LEAST):
        low -= 0.05
    while excess(high) > 0 and high < math.log(MOST):
        high += 0.05
    if low == high or excess(low) <= 0 or excess(high) >= 0:
        return guess
    root = float(brentq(excess, low, high, xtol=1e-4))
    slope = (excess(high) - excess(low)) / (high - low)
    off = math.log(max(spent(math.exp(root)), 1e-12) / target)
    return math.exp(root - off / slope)


def _climb(spent: Spent, start: float, target: float) -> float | None:
    """Return the smallest four-digit noise multiplier that spends at most ``target``, None where it is beyond MOST."""
    inside = outside = _index(start)
    stride = 1
    while spent(_value(inside)) > target:
        if _value(inside) > MOST:
            return None
        outside, inside, stride = inside, inside + stride, 2 * stride
    while outside == inside or spent(_value(outside)) <= target:
        inside, outside, stride = min(inside, outside), outside - stride, 2 * stride
    while inside - outside > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if spent(_value(middle)) <= target else (inside, middle)
    return _value(inside)


def _index(value: float) -> int:
    """Return the number of the smallest four-digit decimal that is not below ``value``."""
    power = math.floor(math.log10(value)) - 3
    return 9000 * power + math.ceil(value / 10.0**power) - 1000


def _value(index: int) -> float:
    """Return the four-digit decimal of a number: 1000 to 9999, times a power of ten."""
    power, digits = divmod(index, 9000)
    return float(f"{digits + 1000}e{power}")


def _epsilon_problems(value: float) -> list[str]:
    return [] if 0 < value < math.inf else [f"epsilon must be a finite number above 0, got {value!r}"]
