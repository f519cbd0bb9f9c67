"""Which rank a device gets, and when ranks count as mixed."""

from __future__ import annotations

import pytest

from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo


def client(device: str) -> ClientInfo:
    """A client that claims a rank and a scaling of its own."""
    return ClientInfo(client_id=0, node_id=0, num_examples=1, device=device, rank=64, scaling=9.0)


@pytest.mark.parametrize(("device", "rank"), [("phone", 2), ("laptop", 16), ("unheard_of", 4)])
def test_the_plan_decides_by_device_and_falls_back_to_its_default(device: str, rank: int) -> None:
    """The global rank, 16, is nobody's but the laptop's; alpha is 8, so that the scaling is 8 / rank."""
    plan = RankPlan(rank=16, default=4, by_device={"phone": 2, "laptop": 16}, scaling_for=lambda r: 8 / r)
    assigned = plan.assign(client(device))
    assert (assigned.rank, assigned.scaling) == (rank, 8 / rank)
    assert plan.scaling == 0.5


def test_without_ranks_nobody_has_one_whatever_it_claims() -> None:
    plan = RankPlan()
    assert (plan.assign(client("phone")).rank, plan.assign(client("phone")).scaling) == (None, 1.0)
    assert (plan.scaling, plan.mixed) == (1.0, False)


@pytest.mark.parametrize(
    ("default", "by_device", "mixed"),
    [(4, {}, False), (4, {"phone": 4}, False), (4, {"phone": 2}, True), (4, {"phone": 2, "laptop": 2}, True)],
)
def test_ranks_are_mixed_where_a_client_may_have_another(default: int, by_device: dict[str, int], mixed: bool) -> None:
    assert RankPlan(rank=4, default=default, by_device=by_device).mixed is mixed
