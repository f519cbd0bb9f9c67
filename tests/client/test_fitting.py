"""What becomes of each tensor on the client: sent, kept, frozen, held, or as it was before round 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.client.fitting import HELD, Fitted, at_rank, fit, payload_spec, put_away
from fedpeft.core.errors import WireError
from fedpeft.core.orders import Orders
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable

INITIAL = {f"m.layers.{i}.x": np.float32([i]) for i in range(3)}


def fitted(payload: Tensors, orders: Orders, own: Tensors) -> tuple[Fitted, dict[str, tuple[float, bool]]]:
    """Return what fit says, and of each live tensor by layer its value and whether it trains."""
    shared = {key: nn.Parameter(torch.full((1,), -1.0)) for key in INITIAL}
    tunable = Tunable(model=nn.Module(), shared=shared, local={}, head_keys=frozenset(), rank=None)
    found = fit(tunable, payload, orders, INITIAL, own)
    return found, {key.split(".")[2]: (value.item(), value.requires_grad) for key, value in shared.items()}


def sent(*layers: int) -> Tensors:
    return {f"m.layers.{i}.x": np.float32([10 + i]) for i in layers}


def test_what_is_sent_and_kept_trains_from_what_was_sent_and_stays() -> None:
    """The client's own older value (7) gives way; layer 2, which it keeps too, goes on from its own (8)."""
    own = {"m.layers.1.x": np.float32([7]), "m.layers.2.x": np.float32([8])}
    orders = Orders(keep=("layers.1", "layers.2"))
    found, live = fitted(sent(0, 1), orders, own)
    assert live == {"0": (10, True), "1": (11, True), "2": (8, True)}
    assert found.kept == ["m.layers.1.x", "m.layers.2.x"]
    assert found.trained == sorted(INITIAL)
    assert orders.returned(sent(0, 1)) == ["m.layers.0.x"]


def test_what_is_kept_starts_from_before_round_1_on_a_new_client() -> None:
    found, live = fitted(sent(0), Orders(keep=("layers.1",)), {})
    assert live == {"0": (10, True), "1": (1, True), "2": (2, False)}
    assert found.kept == ["m.layers.1.x"]


def test_what_a_client_kept_at_another_rank_is_left_and_what_it_held_is_demanded_anew() -> None:
    own = {"m.layers.1.x": np.zeros(2, np.float32), HELD + "m.layers.2.x": np.zeros(2, np.float32)}
    assert fitted(sent(0), Orders(keep=("layers.1",)), own)[1]["1"] == (1, True)
    with pytest.raises(WireError, match=r"m\.layers\.2\.x is not here"):
        fitted(sent(0), Orders(held=("layers.2",)), own)


def test_what_is_frozen_goes_before_what_is_kept() -> None:
    found, live = fitted(sent(0, 1), Orders(freeze=("layers.1",), keep=("layers.1",)), {})
    assert live["1"] == (11, False)
    assert (found.kept, found.trained) == ([], ["m.layers.0.x"])


def test_what_was_put_away_is_held_later_and_demanded() -> None:
    stored = put_away(sent(0, 1), Orders(freeze=("layers.1",), store=("layers.1",)), {})
    assert set(stored) == {HELD + "m.layers.1.x"}
    orders = Orders(held=("layers.1",))
    assert fitted(sent(0), orders, stored)[1]["1"] == (11, False)
    with pytest.raises(WireError, match=r"m\.layers\.1\.x is not here"):
        fitted(sent(0), orders, {})


@pytest.mark.parametrize("beside", ["m.lora_R.weight", "m.sparse_values", "m.lora_magnitude_vector"])
def test_factors_with_something_beside_them_have_one_rank(beside: str) -> None:
    """A core (3, 3) would not fit factors of rank 2."""
    factors = {"m.lora_A.weight": np.zeros((3, 4), np.float32), "m.lora_B.weight": np.zeros((5, 3), np.float32)}
    assert at_rank(factors, 2)["m.lora_A.weight"].shape == (2, 4)
    more = {**factors, beside: np.zeros((3, 3), np.float32)}
    assert at_rank(more, 0) is more
    with pytest.raises(WireError, match="rank 2 was ordered of a method whose factors cannot change rank"):
        payload_spec(Orders(rank=2), {beside: (3, 3)}, more)


def test_control_variates_are_of_known_tensors_and_have_their_shapes() -> None:
    shapes = {"m.layers.0.x": (1,), "control.m.layers.0.x": (7,)}
    assert payload_spec(Orders(), shapes, INITIAL)["control.m.layers.0.x"].shape == (1,)
    with pytest.raises(WireError, match=r"unexpected 'control\.m\.layers\.9\.x'"):
        payload_spec(Orders(), {**shapes, "control.m.layers.9.x": (1,)}, INITIAL)


def test_what_was_put_away_stays_through_rounds_that_put_nothing_away() -> None:
    stored = put_away(sent(0), Orders(store=("layers.0",)), {})
    later = put_away(sent(1), Orders(held=("layers.0",)), {**stored, "residual.m.layers.0.x": np.float32([1])})
    assert (list(later), later[HELD + "m.layers.0.x"].tolist()) == ([HELD + "m.layers.0.x"], [10.0])


def test_gradients_of_the_round_before_are_gone() -> None:
    shared = {key: nn.Parameter(torch.ones(1)) for key in INITIAL}
    for value in shared.values():
        value.grad = torch.ones(1)
    tunable = Tunable(model=nn.Module(), shared=shared, local={}, head_keys=frozenset(), rank=None)
    fit(tunable, sent(0, 1, 2), Orders(), INITIAL, {})
    assert all(value.grad is None for value in shared.values())
