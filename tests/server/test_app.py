"""What the server makes of a config and of what clients say of themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedpeft.client.building import build_runtime
from fedpeft.core.errors import ConfigError
from fedpeft.core.types import ClientInfo, Cost, Work
from fedpeft.engines.flower_private import set_identity
from fedpeft.server.app import beginning, build_strategy
from fedpeft.server.devices import SimulatedDevices
from fedpeft.server.world import Exchange
from fedpeft.strategies.fedavg import FedAvg

Make = Callable[..., dict[str, Any]]


def on(device: str) -> Exchange:
    set_identity(run_id=1, node_id=1)
    client = ClientInfo(client_id=0, node_id=1, num_examples=5, device=device)
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    return Exchange(client=client, kind="train", server_round=1, message=message)


def test_the_strategy_gets_guard_and_selection_from_the_config(toy_config: Make) -> None:
    strategy = build_strategy(toy_config("guard.max_norm=5.5", "round.min_replies=3"))
    assert isinstance(strategy, FedAvg)
    assert (strategy.guard.max_norm, strategy.min_replies, strategy.cohort_size) == (5.5, 3, 4)


@pytest.mark.parametrize(("there", "cohort"), [(1, 1), (4, 4), (9, 4)])
def test_no_more_clients_a_round_are_told_of_than_are_there(toy_config: Make, there: int, cohort: int) -> None:
    told = beginning(toy_config(), 3, there, is_real=True)
    assert (told.cohort_size, told.num_clients, told.first_round, told.is_real) == (cohort, there, 3, True)


def test_what_is_no_flower_strategy_is_refused(toy_config: Make) -> None:
    config = toy_config() | {"strategy": {"_target_": "collections.OrderedDict"}}
    with pytest.raises(ConfigError, match="OrderedDict, not a flwr"):
        build_strategy(config)


def test_a_device_without_a_profile_is_not_predicted_and_warned_of_once(
    toy_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = build_runtime(toy_config())
    devices = SimulatedDevices.of(runtime)
    work = Work(flops=1e9, bytes_down=1000, bytes_up=1000)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert devices.cost(on("toaster"), work) == Cost(down_s=0.0, compute_s=0.0, up_s=0.0)
            assert devices.refusal(on("toaster")) is None
    assert len(caplog.records) == 1
    known = devices.cost(on(runtime.devices[0]), work)
    assert known.compute_s > 0
    assert known.peak_memory_mb is not None
