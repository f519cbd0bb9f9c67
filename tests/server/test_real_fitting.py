"""A real device gets what fits its profile, and less of it each time that its memory ran out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.core.events import ClientReplied
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo, Cost
from fedpeft.device_profiles.presets import load_profile
from fedpeft.server.app import build_strategy
from fedpeft.server.fitting import Fitting, choices_for
from fedpeft.server.real_fitting import SMALLER, RealFitting
from fedpeft.strategies.base import FedPeft

TOLD = "EngineError: out of memory on the device: std::bad_alloc (give it a smaller batch, rank or model)"
KILLED = "the process that answered was killed (SIGKILL), most often by the system because it is out of memory"


@pytest.fixture(scope="module")
def runtime(toy: list[str]) -> Runtime:
    return build_runtime(new_config(cfg.compose([*toy, "client.batch_size=32"])))


@pytest.fixture
def fitting(runtime: Runtime) -> RealFitting:
    strategy = build_strategy(runtime.config)
    assert isinstance(strategy, FedPeft)
    return RealFitting(runtime=runtime, strategy=strategy)


def client(number: int = 1, profile: str = "") -> ClientInfo:
    return ClientInfo(client_id=number, node_id=number, num_examples=50, device="mine", profile=profile)


def replied(detail: str, number: int = 1, **changes: Any) -> ClientReplied:
    event = ClientReplied(
        server_round=1, kind="train", client_id=number, device="mine", num_examples=50, rank=None, bytes_down=0,
        bytes_up=0, cost=Cost(down_s=0.0, compute_s=0.0, up_s=0.0), metrics={}, outcome="error", detail=detail,
    )  # fmt: skip
    return replace(event, **changes)


def needed_mb(fitting: RealFitting, orders: Orders) -> float:
    """Return what the choice behind some orders needs."""
    work = Fitting(runtime=fitting.runtime, choices={}).work
    batch = orders.batch_size or 32
    choices = choices_for(fitting.runtime, fitting.strategy, fitting.runtime.ranks.default or 0)
    return min(
        float(work(one).peak_memory_bytes or 0) / 2**20
        for one in choices
        if (one.batch_size, one.checkpointing) == (batch, orders.checkpointing)
    )


def profile_with(usable_mb: float) -> str:
    profile = load_profile("rpi4_4gb")
    memory = replace(profile.memory, total_mb=1000, usable_fraction=usable_mb / 1000)
    return json.dumps(replace(profile, memory=memory).to_mapping())


def test_a_device_of_which_nothing_is_known_trains_as_the_config_says(fitting: RealFitting) -> None:
    assert fitting.orders(client()) == Orders()


@pytest.mark.parametrize("detail", [TOLD, KILLED])
def test_lack_of_memory_makes_the_next_round_smaller_again_and_again(fitting: RealFitting, detail: str) -> None:
    before = needed_mb(fitting, fitting.orders(client()))
    for _ in range(2):
        fitting(replied(detail))
        orders = fitting.orders(client())
        assert orders != Orders()
        now = needed_mb(fitting, orders)
        assert now <= SMALLER * before or orders.batch_size == 1
        before = now


def test_others_are_not_made_smaller(fitting: RealFitting) -> None:
    for number in (1, 2):
        fitting.orders(client(number))
    fitting(replied(TOLD, number=1))
    assert fitting.orders(client(2)) == Orders()


def test_other_errors_and_evaluations_change_nothing(fitting: RealFitting) -> None:
    fitting.orders(client())
    fitting(replied("EngineError: the data cannot be read"))
    fitting(replied(TOLD, kind="evaluate"))
    fitting(replied("", outcome="ok"))
    assert fitting.orders(client()) == Orders()


def test_a_device_that_tells_of_little_memory_begins_small(fitting: RealFitting) -> None:
    whole = needed_mb(fitting, Orders())
    assert fitting.orders(client(1, profile_with(2 * whole))) == Orders()
    tight = fitting.orders(client(2, profile_with(0.999 * whole)))
    assert 0 < tight.batch_size < 32 or tight.checkpointing or tight.freeze


def test_a_device_that_can_hold_nothing_tries_the_least(fitting: RealFitting) -> None:
    assert fitting.orders(client(3, profile_with(1.0))).batch_size == 1
    for _ in range(20):
        fitting(replied(TOLD, number=3))
        assert fitting.orders(client(3)).batch_size == 1
