"""What an exchange with a real device took: by the server's clock as a whole, by the client's word in parts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message
from toy_runs import fleet

from fedpeft import config as cfg
from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.types import ClientInfo, Work
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.presets import load_profile
from fedpeft.engines.flower_private import set_identity
from fedpeft.server.real_devices import RealDevices, told_profile
from fedpeft.server.world import Exchange

WORK = Work(flops=5e9, bytes_down=10_000, bytes_up=20_000, num_steps=3)


@pytest.fixture(scope="module")
def runtime(toy: list[str]) -> Runtime:
    from fedpeft.cli.launch import new_config

    return build_runtime(new_config({**cfg.compose(toy), "fleet": fleet(rpi4_4gb=1.0)}))


@pytest.fixture
def exchange(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Exchange]:
    """Returns an exchange that began ten seconds ago."""
    monkeypatch.setattr(time, "monotonic", lambda: 1010.0)
    set_identity(run_id=1, node_id=1)

    def make(told: dict[str, Any], **client: Any) -> Exchange:
        content = wire.instruction(wire.encode(runtime.initial), 1, wire.Identity(), {})
        known = ClientInfo(client_id=2, node_id=9, num_examples=48, **{"device": "rpi4_4gb", **client})
        message = Message(content, dst_node_id=9, message_type="train")
        return Exchange(client=known, kind="train", server_round=1, message=message, sent_at_s=1000.0, told=told)

    return make


@pytest.mark.parametrize(
    ("told", "legs"),
    [
        ({"down-s": 1.5, "train-wall-s": 6.0}, (1.5, 6.0, 2.5)),
        ({"train-cpu-s": 4.0}, (0.0, 4.0, 6.0)),
        ({}, (0.0, 0.0, 10.0)),
        # It claims more than there was: its work is cut to the whole, and nothing is left for the link.
        ({"down-s": 3.0, "train-wall-s": 60.0}, (0.0, 10.0, 0.0)),
        ({"down-s": 30.0, "train-wall-s": 4.0}, (6.0, 4.0, 0.0)),
        ({"down-s": -5.0, "train-wall-s": float("nan")}, (0.0, 0.0, 10.0)),
        ({"down-s": "x", "train-wall-s": [1.0]}, (0.0, 0.0, 10.0)),
    ],
)
def test_the_whole_is_the_servers_and_parts_are_the_clients(
    runtime: Runtime, exchange: Callable[..., Exchange], told: dict[str, Any], legs: tuple[float, ...]
) -> None:
    cost = RealDevices.of(runtime).cost(exchange(told), WORK)
    assert (cost.down_s, cost.compute_s, cost.up_s) == pytest.approx(legs)
    assert cost.total_s == pytest.approx(10.0)


def test_memory_and_joules_are_told_or_not_known(runtime: Runtime, exchange: Callable[..., Exchange]) -> None:
    devices = RealDevices.of(runtime)
    cost = devices.cost(exchange({"peak-memory-mb": 512.0, "energy-j": 33.0}), WORK)
    assert (cost.peak_memory_mb, cost.energy_j) == (512.0, 33.0)
    cost = devices.cost(exchange({}), WORK)
    assert (cost.peak_memory_mb, cost.energy_j) == (None, None)


def test_the_prediction_is_that_of_the_told_profile(runtime: Runtime, exchange: Callable[..., Exchange]) -> None:
    """By name where this server has it, by the profile that the device brings, and none for a stranger."""
    devices = RealDevices.of(runtime)
    named = devices.predicted(exchange({}), WORK)
    assert named is not None
    assert named.up_s == predict(load_profile("rpi4_4gb"), WORK).up_s
    own = json.dumps(load_profile("phone_low").to_mapping())
    told = devices.predicted(exchange({}, device="mine", profile=own), WORK)
    assert told is not None
    assert told.up_s == predict(load_profile("phone_low"), WORK).up_s
    assert devices.predicted(exchange({}, device="mine"), WORK) is None
    assert devices.predicted(exchange({}, device="mine", profile='{"name": 3}'), WORK) is None


@pytest.mark.parametrize("told", ["", "{", "[]", '{"schema_version": 1}', "[" * 100_000])
def test_a_profile_that_is_none_is_none(told: str) -> None:
    assert told_profile(told) is None


def test_seconds_pass_by_themselves(runtime: Runtime) -> None:
    devices = RealDevices.of(runtime)
    assert devices.world.is_real
    clients = [ClientInfo(client_id=i, node_id=i, num_examples=3) for i in range(3)]
    assert devices.present(clients, None) == clients  # type: ignore[arg-type]
    assert replace(devices.twins, settings={}).knows(clients[0]) is False
