"""What the settings of every level of privacy have in common: their ranges, and what delta is when none is given."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fedpeft.core.errors import ConfigError
from fedpeft.privacy.accounting import check_delta

LARGE_DELTA = 1e-3
"""Above this a promise to clients comes with a warning."""


def settings_problems(
    *, epsilon: float | None, delta: float | None, clip_norm: float, noise_multiplier: float | None
) -> Iterator[str]:
    """Yield a line for each setting out of range.

    Args:
        epsilon: the budget; None where there is none.
        delta: of the promise; None to derive it.
        clip_norm: C.
        noise_multiplier: z; None to derive it from epsilon.
    """
    for name, value in (("epsilon", epsilon), ("noise_multiplier", noise_multiplier)):
        if value is not None and not _is_positive(value):
            yield f"privacy.{name} must be a positive number, or null, got {value!r}"
    if not _is_positive(clip_norm):
        yield f"privacy.clip_norm must be a positive number, got {clip_norm!r}"
    if delta is not None and not (_is_positive(delta) and delta < 1):
        yield f"privacy.delta must be a number in (0, 1), or null, got {delta!r}"
    if epsilon is None and noise_multiplier is None:
        yield "privacy.epsilon and privacy.noise_multiplier are both null: set the one that you know"


def delta_for(delta: float | None, num_clients: int) -> float:
    """Return delta, or N^-1.1 where none is given, as is usual in federated learning.

    Raises:
        ConfigError: it is not below 1 / N.

    Example:
        >>> round(delta_for(None, 100), 6), delta_for(1e-5, 100)
        (0.00631, 1e-05)
    """
    if delta is None and num_clients < 2:
        raise ConfigError(f"privacy.delta=null means N^-1.1 and needs two clients, got num_clients={num_clients}")
    value = num_clients**-1.1 if delta is None else delta
    check_delta(value, num_clients)
    return value


def delta_warnings(delta: float, num_clients: int) -> tuple[str, ...]:
    """Return a sentence where a promise to clients stands at a delta that makes it weak, () elsewhere.

    Args:
        delta: of the promise.
        num_clients: N, all registered clients.

    Example:
        >>> delta_warnings(1e-4, 5000)
        ()
    """
    if delta <= LARGE_DELTA:
        return ()
    enough = math.ceil(LARGE_DELTA ** (-1 / 1.1))
    return (
        f"delta {delta:.2g} is large: with {num_clients} clients, handing out everything of one at random is delta "
        f"{1 / num_clients:.2g}, so that epsilon says little (set privacy.delta={LARGE_DELTA:g} or less, which takes "
        f"more noise, or register {enough} clients or more, whose N^-1.1 is that small)",
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
