"""Who is believed about the number of steps taken."""

from __future__ import annotations

import math

import pytest

from fedpeft.core.local_steps import STEPS, split_by_steps
from fedpeft.core.types import ClientInfo, ClientUpdate


def claims(*steps: float) -> list[ClientUpdate]:
    return [
        ClientUpdate(
            client=ClientInfo(client_id=k, node_id=k, num_examples=1),
            tensors={},
            num_examples=1,
            metrics={} if math.isnan(one) else {STEPS: one},
        )
        for k, one in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("steps", "factor", "believed"),
    [
        ((1, 10, 1e18), math.inf, [0, 1, 2]),
        ((0, -1, 2.5, math.nan, 7), math.inf, [4]),
        ((10, 10, 20, 21), 2.0, [0, 1, 2, 3]),
        ((10, 10, 10, 20, 21), 2.0, [0, 1, 2, 3]),
        ((10, 20, 0, 0, 0, 0.5, -1e18), 2.0, [0, 1]),
        ((0, math.nan), 2.0, []),
    ],
)
def test_a_whole_number_up_to_a_multiple_of_the_median_is_believed(
    steps: tuple[float, ...], factor: float, believed: list[int]
) -> None:
    """Unsound claims do not count for the median: of 10 and 20 it is 15, however many say 0."""
    good, rejected = split_by_steps(claims(*steps), 3, factor)
    assert [one.client.client_id for one in good] == believed
    assert sorted([*believed, *(event.client_id for event in rejected)]) == list(range(len(steps)))
    assert all((event.server_round, event.kind, event.check) == (3, "train", "steps") for event in rejected)
