"""What example-level privacy promises in a run whose clients hold different numbers of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedpeft.core.errors import ConfigError
from fedpeft.privacy.calibrate import rough_noise_multiplier
from fedpeft.privacy.example_level import ExampleLevel, ExampleLevelRun
from fedpeft.privacy.statement import PrivacyStatement


def promise_for_all(
    level: ExampleLevel, steps_by_size: Mapping[int, int], *, batch_size: int, rounds: int
) -> PrivacyStatement:
    """Return a statement that holds for every client: epsilon of the one that spends most.

    That need not be the smallest one: where clients count epochs, one with an example more than a batch takes two steps
    at nearly the same rate. Where the noise is fitted to the budget, each client has its own, rounded up, and the
    budget itself is what none of them passes.

    Args:
        level: what is promised.
        steps_by_size: optimiser steps a round by the number of a client's examples, for all the clients; not empty.
        batch_size: expected size of a batch.
        rounds: rounds that each client may take part in.

    Raises:
        ConfigError: delta is not below one over a client's examples, or no noise fits the budget.
    """

    def plan(size: int) -> ExampleLevelRun:
        return level.plan(num_examples=size, batch_size=batch_size, steps=steps_by_size[size], rounds=rounds)

    if level.noise_multiplier is None:
        stated = _fitted(level, [plan(size) for size in _extremes(level, steps_by_size, batch_size, rounds)])
    else:
        each = [plan(size).statement() for size in _costliest(steps_by_size)]
        by_rdp = [one.epsilon_rdp for one in each if one.epsilon_rdp is not None]
        stated = replace(max(each, key=lambda one: one.epsilon), epsilon_rdp=max(by_rdp, default=None))
    rates = [min(1.0, batch_size / size) for size in steps_by_size]
    steps = [one * rounds for one in steps_by_size.values()]
    return replace(
        stated,
        sampling_rate=max(rates),
        sampling_rate_least=min(rates) if min(rates) < max(rates) else None,
        steps=max(steps),
        steps_least=min(steps) if min(steps) < max(steps) else None,
    )


def promise_unseen(level: ExampleLevel, *, steps: int | None) -> PrivacyStatement:
    """Return a statement for devices that keep to themselves how many examples they hold: none passes the budget.

    Each fits its own noise to the budget, or with ``noise_multiplier`` stops where its ledger has come to it.

    Args:
        level: what is promised.
        steps: optimiser steps of the whole run, None where they depend on the examples.

    Raises:
        ConfigError: there is no budget, and so nothing that is the same for all of them.
    """
    if level.epsilon is None:
        raise ConfigError(
            "on real devices nobody but a device knows how many examples it has, and so what epsilon "
            f"privacy.noise_multiplier={level.noise_multiplier:g} comes to (set privacy.epsilon, a budget that each "
            "device keeps)"
        )
    return level.statement(
        noise_multiplier=level.noise_multiplier,
        sampling_rate=None,
        steps=steps,
        epsilon=level.epsilon,
        epsilon_rdp=None,
        accountant=level.accountant,
    )


def _costliest(steps_by_size: Mapping[int, int]) -> list[int]:
    """Return the sizes of clients among whom the one is that spends most under equal noise.

    Of clients with equal steps the smallest samples most often; one that has neither more steps nor fewer examples than
    another spends no more than it.
    """
    found: list[int] = []
    for size in sorted(steps_by_size):
        if not found or steps_by_size[size] > steps_by_size[found[-1]]:
            found.append(size)
    return found


def _extremes(level: ExampleLevel, steps_by_size: Mapping[int, int], batch_size: int, rounds: int) -> list[int]:
    """Return the sizes of the clients that need least and most noise, as one size where they are alike."""
    assert level.epsilon is not None, "the constructor saw to it"
    rough = {
        size: rough_noise_multiplier(
            level.epsilon, level.delta, sampling_rate=min(1.0, batch_size / size), steps=steps * rounds
        )
        for size, steps in steps_by_size.items()
    }
    # The largest client is always among them: for it delta is hardest to keep.
    return sorted({min(rough, key=rough.__getitem__), max(rough, key=rough.__getitem__), max(rough)})


def _fitted(level: ExampleLevel, plans: list[ExampleLevelRun]) -> PrivacyStatement:
    """Return a statement with the budget as epsilon, and the span of the noise that is fitted to it."""
    assert level.epsilon is not None, "the constructor saw to it"
    noises = [plan.noise_multiplier for plan in plans]
    alone = len(plans) == 1
    stated = plans[0].statement()
    by_rdp = level.epsilon if level.accountant == "rdp" else None
    return replace(
        stated,
        noise_multiplier=min(noises),
        noise_multiplier_most=max(noises) if min(noises) < max(noises) else None,
        epsilon=level.epsilon,
        epsilon_rdp=stated.epsilon_rdp if alone else by_rdp,
    )
