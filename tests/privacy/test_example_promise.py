"""A statement holds for every client: not for the smallest only, nor for one whose noise was rounded up furthest."""

from __future__ import annotations

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.privacy.example_promise import promise_for_all, promise_unseen
from fedpeft.privacy.statement import PrivacyStatement

DELTA, BATCH, ROUNDS = 1e-3, 16, 3


def test_a_client_with_one_example_more_than_a_batch_may_spend_most() -> None:
    """By epochs: 16 examples are one step at rate 1, 17 are two at rate 16/17, 40 are three at 0.4."""
    level = ExampleLevel(epsilon=None, noise_multiplier=1.5, delta=DELTA, accountant="rdp")
    steps = {16: 1, 17: 2, 40: 3}
    each = {
        size: level.plan(num_examples=size, batch_size=BATCH, steps=steps[size], rounds=ROUNDS).statement().epsilon
        for size in steps
    }
    assert max(each, key=each.__getitem__) == 17
    found = promise_for_all(level, steps, batch_size=BATCH, rounds=ROUNDS)
    assert found.epsilon == each[17] > each[16]
    assert (found.sampling_rate_least, found.sampling_rate) == (0.4, 1.0)
    assert (found.steps_least, found.steps) == (3, 9)
    assert found.noise_multiplier_most is None
    lines = dict(line.split("  ", 1) for line in found.lines()[:4])
    assert "after 3 to 9 steps by client" in lines["epsilon"]
    assert lines["sampling"].endswith("rate 0.4 to 1 by client")


def test_noise_that_is_fitted_for_each_client_promises_the_budget() -> None:
    """Four digits of noise are rounded up differently: no single client's epsilon bounds the others'."""
    level = ExampleLevel(epsilon=8.0, delta=DELTA, accountant="rdp")
    steps = dict.fromkeys((31, 80, 120), 2)
    plans = [level.plan(num_examples=size, batch_size=BATCH, steps=2, rounds=ROUNDS) for size in steps]
    found = promise_for_all(level, steps, batch_size=BATCH, rounds=ROUNDS)
    assert found.epsilon == 8.0 >= max(plan.spent([plan.next_release] * ROUNDS) for plan in plans)
    noises = [plan.noise_multiplier for plan in plans]
    assert (found.noise_multiplier, found.noise_multiplier_most) == (min(noises), max(noises))
    assert f"noise multiplier {min(noises):g} to {max(noises):g} by client" in "\n".join(found.lines())


@pytest.mark.parametrize("level", [ExampleLevel(noise_multiplier=1.0), ExampleLevel(epsilon=8.0, accountant="rdp")])
def test_clients_that_are_alike_have_no_spans(level: ExampleLevel) -> None:
    found = promise_for_all(level, {64: 4}, batch_size=BATCH, rounds=ROUNDS)
    assert (found.noise_multiplier_most, found.sampling_rate_least, found.steps_least) == (None, None, None)
    assert (found.sampling_rate, found.steps) == (0.25, 12)


def test_devices_that_keep_their_sizes_are_promised_the_budget() -> None:
    stated = promise_unseen(ExampleLevel(epsilon=8.0, delta=1e-6), steps=40)
    assert (stated.epsilon, stated.delta, stated.steps) == (8.0, 1e-6, 40)
    assert stated.noise_multiplier is stated.sampling_rate is stated.epsilon_rdp is None
    said = "\n".join(stated.lines())
    assert "8.000 at delta 1e-06 after 40 steps" in said
    assert "noise multiplier fitted by each device" in said and "rate known to each device alone" in said
    assert PrivacyStatement.from_dict(stated.to_dict()) == stated
    assert "after all its steps" in "\n".join(promise_unseen(ExampleLevel(epsilon=8.0), steps=None).lines())


def test_noise_alone_promises_devices_of_unknown_size_nothing() -> None:
    with pytest.raises(ConfigError, match=r"noise_multiplier=1 comes to \(set privacy.epsilon"):
        promise_unseen(ExampleLevel(noise_multiplier=1.0), steps=4)
