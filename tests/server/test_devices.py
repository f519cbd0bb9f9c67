"""The simulated devices of a run: costs, refusals, presence, by the config's settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from toy_runs import fleet, write_profile

from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo, Work
from fedpeft.device_profiles.fit import usable_mb
from fedpeft.device_profiles.luck import luck_of
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.presets import load_profile
from fedpeft.engines.flower_private import set_identity
from fedpeft.server.devices import SimulatedDevices
from fedpeft.server.world import Exchange, VirtualClock

WORK = Work(flops=5e9, bytes_down=10_000, bytes_up=20_000, num_steps=3)
SETTINGS = {"jitter": False, "memory": True, "availability": False, "fit": False}


@pytest.fixture(scope="module")
def runtime(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A runtime whose six clients are all `rpi4_4gb`."""
    from fedpeft import config as cfg
    from fedpeft.cli.launch import new_config

    return build_runtime(new_config({**cfg.compose(toy), "fleet": fleet(rpi4_4gb=1.0)}))


def devices(runtime: Runtime, **settings: Any) -> SimulatedDevices:
    return replace(SimulatedDevices.of(runtime), settings=SETTINGS | settings)


def exchange(runtime: Runtime, kind: str = "train", orders: Orders | None = None, server_round: int = 1) -> Exchange:
    set_identity(run_id=1, node_id=1)
    entries = (orders or Orders()).entries()
    content = wire.instruction(wire.encode(runtime.initial), server_round, wire.Identity(), entries)
    client = ClientInfo(client_id=2, node_id=9, num_examples=48, device="rpi4_4gb")
    message = Message(content, dst_node_id=9, message_type=kind)
    return Exchange(client=client, kind=kind, server_round=server_round, message=message)


def test_a_cost_is_the_prediction_and_with_jitter_its_luck(runtime: Runtime) -> None:
    profile, plain, lucky = load_profile("rpi4_4gb"), devices(runtime), devices(runtime, jitter=True)
    for server_round in (1, 2):
        asked = exchange(runtime, server_round=server_round)
        expected, got = plain.cost(asked, WORK), lucky.cost(asked, WORK)
        assert expected.down_s == predict(profile, WORK).down_s
        luck = luck_of(profile, runtime.seed, 2, server_round, "train")
        assert got.down_s == pytest.approx(luck.down * expected.down_s)
        assert got.compute_s == pytest.approx(luck.compute * expected.compute_s)
        assert got.up_s == pytest.approx(luck.up * expected.up_s)
        assert lucky.cost(asked, WORK) == got


def test_less_work_needs_less_memory(runtime: Runtime) -> None:
    """A smaller batch, and the lower layer at rest; an evaluation keeps no activations at all."""
    here = devices(runtime)

    def peak(asked: Exchange) -> float:
        found = here.cost(asked, WORK).peak_memory_mb
        assert found is not None
        return found

    whole = peak(exchange(runtime))
    assert peak(exchange(runtime, orders=Orders(batch_size=2))) < whole
    assert peak(exchange(runtime, orders=Orders(freeze=("layer.0",)))) < whole


def test_memory_refuses_by_what_the_message_asks(runtime: Runtime, tmp_path: Path, monkeypatch: Any) -> None:
    """Between the needs of 8 and of 2 examples: the first is refused with both numbers, the second is not."""
    monkeypatch.chdir(tmp_path)
    here = devices(runtime)
    peaks = [
        here.cost(exchange(runtime, orders=Orders(batch_size=size)), WORK).peak_memory_mb or 0.0 for size in (8, 2)
    ]
    between = sum(peaks) / 2
    write_profile(Path("tiny.yaml"), memory={"total_mb": 1000, "usable_fraction": between / 1000})
    small = replace(here, runtime=build_runtime({**runtime.config, "fleet": fleet(tiny=1.0)}))
    small = SimulatedDevices(runtime=small.runtime, settings=SETTINGS, fleet=_fleet(small.runtime))
    assert usable_mb(small.fleet.profile("tiny.yaml")) == pytest.approx(between)
    asked = [exchange(runtime, orders=Orders(batch_size=size)) for size in (8, 2)]
    eight, two = (replace(one, client=replace(one.client, device="tiny.yaml")) for one in asked)
    refusal = small.refusal(eight)
    assert refusal is not None
    assert refusal.needed_mb == pytest.approx(peaks[0])
    assert f"needs {peaks[0]:.0f} MiB, tiny.yaml has {between:.0f} MiB" in refusal.reason
    assert small.refusal(two) is None
    assert replace(small, settings=SETTINGS | {"memory": False}).refusal(eight) is None


def _fleet(runtime: Runtime) -> Any:
    return SimulatedDevices.of(runtime).fleet


def test_where_a_private_client_tells_no_operations_they_are_expected(runtime: Runtime) -> None:
    """As many steps as it says, on batches of the mean length; with half the batch about half of it."""
    here = devices(runtime)
    silent = replace(WORK, flops=0.0)
    step = runtime.train_flops.step(8, runtime.usual_length)
    assert here._completed(exchange(runtime), silent).flops == pytest.approx(3 * step)
    half = here._completed(exchange(runtime, orders=Orders(batch_size=4)), silent).flops
    assert half == pytest.approx(3 * runtime.train_flops.step(4, runtime.usual_length))
    assert here._completed(exchange(runtime), WORK).flops == WORK.flops


def test_an_expected_cost_is_near_what_happens(runtime: Runtime) -> None:
    """Selections plan with it: 3 steps of 8 texts of mean length, the tensors each way without headers."""
    client = exchange(runtime).client
    found = devices(runtime).expected(client)
    flops = 3 * runtime.train_flops.step(8, runtime.usual_length)
    size = sum(value.nbytes for value in runtime.initial.values())
    work = Work(flops=flops, bytes_down=size, bytes_up=size, dtype="float32", num_steps=3)
    assert found == predict(load_profile("rpi4_4gb"), work)


# -- presence ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guests(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimulatedDevices]:
    """Return a function to devices of which client 0 is there in [50, 60), 1 in [55, 90), and the others never."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(
        "client_id,start_s,end_s\n0,50,60\n1,55,90\n" + "".join(f"{i},8000,9000\n" for i in range(2, 6))
    )

    def make(**availability: Any) -> SimulatedDevices:
        settings = {"model": "trace", "trace": "trace.csv", "dropout_per_round": 0.0, **availability}
        write_profile(Path("guest.yaml"), availability=settings)
        made = build_runtime({**runtime.config, "fleet": fleet(guest=1.0)})
        return devices(made, availability=True)

    return make


def clients() -> list[ClientInfo]:
    return [ClientInfo(client_id=i, node_id=90 - i, num_examples=5, device="guest.yaml") for i in range(6)]


def test_time_passes_until_somebody_comes_and_no_further(guests: Callable[..., SimulatedDevices]) -> None:
    here, clock = guests(), VirtualClock()
    assert [client.client_id for client in here.present(clients(), clock)] == [0]
    assert clock.now_s == 50.0
    clock.move_to(56.0)
    assert [client.client_id for client in here.present(clients(), clock)] == [0, 1]
    assert clock.now_s == 56.0
    assert here.present([], clock) == []
    assert clock.now_s == 56.0


def test_without_availability_all_are_there(guests: Callable[..., SimulatedDevices]) -> None:
    here, clock = replace(guests(), settings=SETTINGS), VirtualClock()
    assert here.present(clients(), clock) == clients()
    assert clock.now_s == 0.0


def test_a_client_leaves_when_its_session_ends(guests: Callable[..., SimulatedDevices], runtime: Runtime) -> None:
    """Client 1 goes at 90: 30 seconds from 60 on, whatever it does."""
    here, asked = guests(), exchange(runtime)
    asked = replace(asked, client=clients()[1])
    for kind in ("train", "evaluate"):
        assert here.leaves_after_s(replace(asked, kind=kind), 60.0, 10.0) == pytest.approx(30.0)
    assert replace(here, settings=SETTINGS).leaves_after_s(asked, 60.0, 10.0) == math.inf


def test_a_client_may_drop_out_of_a_training_exchange(
    guests: Callable[..., SimulatedDevices], runtime: Runtime
) -> None:
    """With probability 0.99 in each round, at a part of the exchange that is uniform; evaluations are short."""
    here = guests(dropout_per_round=0.99)
    asked = replace(exchange(runtime), client=clients()[1])
    after = [here.leaves_after_s(replace(asked, server_round=r), 55.0, 10.0) for r in range(1, 60)]
    dropped = [seconds for seconds in after if seconds < 10.0]
    assert len(dropped) > 50
    assert 3.0 < float(np.mean(dropped)) < 7.0
    assert here.leaves_after_s(replace(asked, kind="evaluate"), 55.0, 10.0) == pytest.approx(35.0)
