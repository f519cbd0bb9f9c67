"""FedPepTAO's server side by hand: two clients, one number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.core.drive import Drive, Rule, advance, packed, unpacked
from fedpeft.core.errors import WireError
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors

RULE = Rule(momentum=0.9, difference=True, control=True, client_lr=0.5, num_clients=4)


def at(w: float) -> Tensors:
    return {"w": np.float32([w])}


def replies(w1: float, w2: float) -> list[ClientUpdate]:
    """One example and one step on client 0, three of each on client 7: p = 1/4, 3/4, tau = 1, 3."""
    return [
        ClientUpdate(
            client=ClientInfo(client_id=k, node_id=k, num_examples=n),
            tensors=at(w),
            num_examples=n,
            metrics={"train-steps": n},
        )
        for k, n, w in ((0, 1, w1), (7, 3, w2))
    ]


def test_two_rounds_by_hand() -> None:
    """Round 1 from w = 8 with w_1 = 4, w_2 = 2, lr = 0.05:

    a = 4/4 + 3 * 2/4 = 2.5, D = 5.5. c_1 = 4 / (1 * 0.5) = 8, c_2 = 6 / (3 * 0.5) = 4.
    c = 2/4 (1 * 8 + 3 * 4) / 4 = 2.5; sum p_k c_k = 2 + 3 = 5; g = 0 in the first round.
    v = 2.5 - 5 = -2.5; w = 2.5 + 0.05 * 2.5 = 2.625; lr = 0.0495.

    Round 2 from w = 4 with w_1 = 3, w_2 = 4:
    a = 3.75, D = 0.25. c_1 = 8 - 2.5 + 1 / 0.5 = 7.5, c_2 = 4 - 2.5 + 0 = 1.5.
    c = 2.5 + 2/4 (1 * -0.5 + 3 * -2.5) / 4 = 1.5; sum p_k c_k = 1.875 + 1.125 = 3; g = 5.5 - 0.25 = 5.25.
    v = 0.9 * -2.5 + 0.1 * 5.25 + 1.5 - 3 = -3.225; w = 3.75 + 0.0495 * 3.225 = 3.9096375.
    """
    new, drive = advance(Drive(lr=0.05), at(8), replies(4, 2), RULE)
    assert new["w"] == np.float32([2.625])
    assert drive.velocity["w"].item() == -2.5
    assert drive.lr == 0.05 * 0.99
    new, drive = advance(drive, at(4), replies(3, 4), RULE)
    assert [drive.own[k]["w"].item() for k in (0, 7)] == [7.5, 1.5]
    assert drive.mean["w"].item() == 1.5
    assert new["w"].item() == pytest.approx(3.9096375, abs=1e-6)


def test_plain_momentum_without_control_by_hand() -> None:
    """v = 0.1 D = 0.55, w = 2.5 - 0.05 * 0.55 = 2.4725; steps are not asked for."""
    rule = replace(RULE, difference=False, control=False)
    given = [replace(one, metrics={}) for one in replies(4, 2)]
    new, drive = advance(Drive(lr=0.05), at(8), given, rule)
    assert new["w"].item() == pytest.approx(2.4725, abs=1e-6)
    assert (drive.mean, drive.own) == ({}, {})


def test_equal_clients_of_a_whole_federation_need_no_correction() -> None:
    """All N = 2 take part and agree: c = c_1 = c_2, and what is left is momentum."""
    rule = replace(RULE, difference=False, num_clients=2)
    given = [replace(one, metrics={"train-steps": 2}) for one in replies(4, 4)]
    with_control = advance(Drive(lr=0.05), at(8), given, rule)[0]
    assert with_control["w"] == advance(Drive(lr=0.05), at(8), given, replace(rule, control=False))[0]["w"]


def test_the_rate_stops_falling_at_its_floor() -> None:
    assert advance(Drive(lr=1.0001e-4), at(8), replies(4, 2), RULE)[1].lr == 1e-4


def test_a_client_without_a_control_of_its_own_starts_at_zero_and_others_keep_theirs() -> None:
    first, second = replies(4, 2)
    drive = advance(Drive(lr=0.05), at(8), [first], RULE)[1]
    later = advance(drive, at(8), [second], RULE)[1]
    assert later.own[0]["w"].tobytes() == drive.own[0]["w"].tobytes()
    # c = 1/4 * 8 = 2 after round 1; c_2 = 0 - 2 + 6 / 1.5 = 2.
    assert later.own[7]["w"].item() == 2.0


def test_memory_is_packed_and_unpacked_bit_for_bit() -> None:
    drive = advance(Drive(lr=0.05), at(8), replies(4, 2), RULE)[1]
    back = unpacked({"other": "x", **packed(drive)})
    assert packed(back).keys() == packed(drive).keys()
    assert advance(back, at(4), replies(3, 4), RULE)[0]["w"] == advance(drive, at(4), replies(3, 4), RULE)[0]["w"]


def test_what_does_not_fit_float32_is_refused() -> None:
    with pytest.raises(WireError, match="does not fit float32"):
        advance(Drive(lr=1e6), at(3e38), replies(-3e38, -3e38), replace(RULE, client_lr=1e-9))
