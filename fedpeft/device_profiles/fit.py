"""What a device can hold, and the most that fits it: rank, trained layers, batch, gradient checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fedpeft.core.errors import ConfigError
from fedpeft.core.layers import layers_of
from fedpeft.core.types import Cost, Work
from fedpeft.device_profiles.memory import StepMemory
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.schema import DeviceProfile

_SHARES = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a device trains.

    Attributes:
        rank: LoRA rank, 0 for a method without ranks.
        layers: trained layers, counted from the top; 0 for a method whose tensors belong to no layers.
        batch_size: examples a step.
        checkpointing: whether layers are recomputed in the backward pass.
    """

    rank: int
    layers: int
    batch_size: int
    checkpointing: bool


def usable_mb(profile: DeviceProfile) -> float:
    """Return the MiB that training may take: ``total_mb * usable_fraction``."""
    return profile.memory.total_mb * profile.memory.usable_fraction


def needed_mb(profile: DeviceProfile, step: StepMemory) -> float:
    """Return the MiB that a process needs for a step: process and peak, times the allocator's overhead."""
    return step.process_bytes * profile.memory.allocator_overhead / 2**20


def fits(profile: DeviceProfile, step: StepMemory) -> bool:
    """Return whether a device can hold a step."""
    return needed_mb(profile, step) <= usable_mb(profile)


def candidates(
    *, rank: int, batch_size: int, num_layers: int, can_checkpoint: bool, mixed_ranks: bool = True
) -> list[Choice]:
    """Return the choices that ``fit`` goes through, best first.

    Rank and batch size are the given ones and their halves down to 1, layers all and 3/4, 1/2 and 1/4 of them (rounded
    up). A larger rank comes before more layers, more layers before a larger batch, and that before doing without
    checkpointing.

    Args:
        rank: the largest LoRA rank, 0 for a method without ranks.
        batch_size: the largest batch.
        num_layers: layers that the method's tensors belong to, 0 for none.
        can_checkpoint: whether the method allows gradient checkpointing.
        mixed_ranks: whether clients may differ in rank.

    Raises:
        ConfigError: a negative rank or number of layers, or no example a step.
    """
    if rank < 0 or num_layers < 0 or batch_size < 1:
        raise ConfigError(
            f"candidates need rank >= 0, num_layers >= 0 and batch_size >= 1, got {rank}, {num_layers}, {batch_size}"
        )
    ranks = _halves(rank) if mixed_ranks and rank else [rank]
    layers = sorted({math.ceil(num_layers * share) for share in _SHARES}, reverse=True)
    return [
        Choice(rank=one, layers=count, batch_size=size, checkpointing=checkpointing)
        for one in ranks
        for count in layers
        for size in _halves(batch_size)
        for checkpointing in ([False, True] if can_checkpoint else [False])
    ]


def fit(
    profile: DeviceProfile,
    choices: Iterable[Choice],
    predict_work: Callable[[Choice], Work],
    *,
    deadline_s: float | None = None,
) -> Choice | None:
    """Return the first of the choices that a device can hold and finishes in time, None where it can hold none.

    Where it finishes none in time, it is the fastest of those that were looked at: predictions err, and a client that
    is late is on record as such.

    A choice fits where ``peak_memory_bytes * allocator_overhead <= total_mb * usable_fraction`` and the expected
    download, computation and upload take at most ``deadline_s``. Choices of one rank and as many layers that follow
    each other are passed over together where the smallest batch with checkpointing does not fit the memory: more
    examples and no checkpointing never need less.

    Args:
        profile: the device.
        choices: best first, see `candidates`.
        predict_work: what a choice asks of the device; its ``peak_memory_bytes`` must be known.
        deadline_s: seconds of a whole exchange, None for any.

    Raises:
        ConfigError: a work does not say what memory it needs.
    """
    costs: dict[Choice, Cost] = {}
    late: list[Choice] = []

    def cost(choice: Choice) -> Cost:
        if choice not in costs:
            costs[choice] = predict(profile, predict_work(choice))
        return costs[choice]

    def is_held(choice: Choice) -> bool:
        needed = cost(choice).peak_memory_mb
        if needed is None:
            raise ConfigError(f"{choice} cannot be fitted to {profile.name}: its memory is not known")
        return needed <= usable_mb(profile)

    for _, found in groupby(choices, key=lambda choice: (choice.rank, choice.layers)):
        alike = list(found)
        if not is_held(min(alike, key=lambda choice: (choice.batch_size, not choice.checkpointing))):
            continue
        for choice in alike:
            if not is_held(choice):
                continue
            if deadline_s is None or cost(choice).total_s <= deadline_s:
                return choice
            late.append(choice)
    return min(late, key=lambda choice: cost(choice).total_s, default=None)


def layers_below(keys: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the names of the lowest layers, as ``Orders.freeze`` takes them.

    Args:
        keys: names of the tensors that travel; their layers are those with a number, see ``core.layers``.
        count: how many layers to freeze, at least 0.

    Example:
        >>> layers_below(["h.0.a.weight", "h.2.a.weight", "h.10.a.weight", "head.weight"], 2)
        ('h.0', 'h.2')
    """
    layers = layers_of(keys)
    return tuple(name for number in sorted(layers)[: max(count, 0)] for name in layers[number])


def _halves(most: int) -> Sequence[int]:
    found = [most]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found
