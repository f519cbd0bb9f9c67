"""A statement says everything that its epsilon needs, and epsilon is never shown smaller than it is."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from fedpeft.core.errors import PrivacyError
from fedpeft.privacy.client_level import ClientLevel
from fedpeft.privacy.local import Local
from fedpeft.privacy.statement import PrivacyStatement, show_epsilon

STATEMENT = PrivacyStatement(
    unit="one client",
    adjacency="add or remove one client",
    mechanism="clipped mean with Gaussian noise",
    sampling="Poisson",
    noise_multiplier=0.8045,
    clip_norm=0.5,
    sampling_rate=0.1,
    steps=1000,
    delta=5e-4,
    epsilon=7.99986,
    epsilon_rdp=9.1001,
    accountant="pld",
    trust="the server sees each client's update",
    not_covered=("Sizes are not covered.", "Metrics are not covered."),
)


def test_the_lines_hold_every_number_and_sentence() -> None:
    assert STATEMENT.lines() == [
        "protects     one client (add or remove one client)",
        "epsilon      8.000 at delta 0.0005 after 1,000 steps (PLD; 9.101 by RDP)",
        "mechanism    clipped mean with Gaussian noise; clip norm 0.5, noise multiplier 0.8045",
        "sampling     Poisson; rate 0.1",
        "trust        the server sees each client's update",
        "not covered  Sizes are not covered.",
        "not covered  Metrics are not covered.",
    ]


def test_what_makes_it_weak_stands_below_epsilon() -> None:
    weak = dataclasses.replace(STATEMENT, warnings=("delta is large",))
    assert weak.lines()[1:3] == [STATEMENT.lines()[1], "warning      delta is large"]
    assert PrivacyStatement.from_dict(json.loads(json.dumps(weak.to_dict()))) == weak


@pytest.mark.parametrize("level", [ClientLevel, Local])
def test_a_large_delta_is_warned_of_with_what_it_would_take(level: type[ClientLevel] | type[Local]) -> None:
    """534^-1.1 = 0.000999 is the first that is not above 0.001."""

    def warned(num_clients: int, delta: float | None = None) -> tuple[str, ...]:
        made = level(epsilon=None, noise_multiplier=5.0, delta=delta)
        sizes = {"cohort_size": 5} if level is ClientLevel else {}
        return made.plan(rounds=1, num_clients=num_clients, **sizes).statement().warnings  # type: ignore[arg-type]

    (sentence,) = warned(20)
    assert sentence.startswith("delta 0.037 is large: ")
    assert "with 20 clients, handing out everything of one at random is delta 0.05" in sentence
    assert "register 534 clients" in sentence
    assert len(warned(533)) == 1
    assert warned(534) == warned(20, 1e-3) == ()


def test_no_noise_is_called_no_privacy() -> None:
    open_ = dataclasses.replace(STATEMENT, epsilon=math.inf, epsilon_rdp=None)
    assert open_.lines()[1] == "epsilon      infinite (no privacy) at delta 0.0005 after 1,000 steps (PLD)"


@pytest.mark.parametrize("changed", [{}, {"epsilon": math.inf, "epsilon_rdp": math.inf}, {"epsilon_rdp": None}])
def test_it_survives_strict_json(changed: dict[str, float | None]) -> None:
    statement = dataclasses.replace(STATEMENT, **changed)
    text = json.dumps(statement.to_dict(), allow_nan=False)
    assert PrivacyStatement.from_dict(json.loads(text)) == statement


def test_another_shape_is_refused_by_the_names() -> None:
    data = STATEMENT.to_dict()
    del data["trust"], data["unit"]
    with pytest.raises(PrivacyError, match="missing trust, unit, unknown extra"):
        PrivacyStatement.from_dict({**data, "extra": 1})


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [
        (1.99951, "2.000"),
        (4.37718, "4.378"),
        (0.0, "0"),
        (8.0, "8.000"),
        (434.9, "434.9"),
        (12345.6, "12346"),
        (9.99951, "10.000"),
    ],
)
def test_epsilon_is_rounded_up(epsilon: float, shown: str) -> None:
    assert show_epsilon(epsilon) == shown


def test_one_of_a_thing_is_not_called_many() -> None:
    one = dataclasses.replace(STATEMENT, steps=1)
    assert "after 1 step (PLD" in one.lines()[1]


def test_epsilon_is_never_shown_below_what_it_is_nor_far_above() -> None:
    for epsilon in np.exp(np.random.default_rng(0).uniform(-12, 14, 20_000)):
        for digits in (3, 4, 5):
            assert epsilon <= float(show_epsilon(float(epsilon), digits)) <= epsilon * (1 + 1.1 * 10 ** (1 - digits))
