"""What each device is given so that it fits: within the ranks, rules and privacy of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_runs import fleet, write_profile

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo
from fedpeft.server.app import build_strategy
from fedpeft.server.fitting import Fitting
from fedpeft.strategies.base import FedPeft

Fitted = Callable[..., tuple[Fitting, Runtime]]


@pytest.fixture(scope="module")
def fitted(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    """Return a function from overrides, and what training may take of a third of the clients, to what they are given.

    ``tight`` MiB are for the device ``tiny.yaml``; all others are `rpi4_4gb`. What steps take is measured once for
    equal overrides.
    """
    made: dict[tuple[str, ...], Runtime] = {}

    def make(*overrides: str, tight: float) -> tuple[Fitting, Runtime]:
        write_profile(Path("tiny.yaml"), memory={"total_mb": 1000, "usable_fraction": tight / 1000})
        config = new_config({**cfg.compose([*toy, *overrides]), "fleet": fleet(tiny=1 / 3, rpi4_4gb=2 / 3)})
        # A deadline changes nothing of what a step takes.
        key = tuple(one for one in overrides if not one.startswith("round."))
        if key not in made:
            made[key] = build_runtime(config)
        runtime = replace(made[key], config=config)
        strategy = build_strategy(config)
        assert isinstance(strategy, FedPeft)
        return Fitting.of(runtime, strategy, cfg.build(config["fleet"])), runtime

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fitting"))
        yield make


def on(device: str) -> ClientInfo:
    return ClientInfo(client_id=1, node_id=1, num_examples=50, device=device)


def needed(fitting: Fitting, **changes: Any) -> float:
    """Return the MiB that the large devices' choice needs, with changes."""
    work = fitting.work(replace(fitting.choices["rpi4_4gb"], **changes))
    return work.peak_memory_bytes * 1.05 / 2**20


def test_who_has_room_is_told_nothing_and_who_has_none_is_left_to_the_grid(fitted: Fitted) -> None:
    fitting, _ = fitted(tight=100.0)
    assert set(fitting.choices) == {"rpi4_4gb"}
    assert fitting.orders(on("rpi4_4gb")) == fitting.orders(on("tiny.yaml")) == Orders()


def test_a_tight_device_trains_less_and_is_told_so(fitted: Fitted) -> None:
    """Between 8 recomputed and 4: a batch of 4; with room for the top layer alone, the lower one is frozen."""
    fitting, _ = fitted(tight=100.0)
    eight = needed(fitting, batch_size=8, checkpointing=True)
    four = needed(fitting, batch_size=4)
    fitting, _ = fitted(tight=(eight + four) / 2)
    assert fitting.orders(on("tiny.yaml")) == Orders(batch_size=4)
    both = needed(fitting, batch_size=1, checkpointing=True)
    top = needed(fitting, batch_size=1, checkpointing=True, layers=1)
    fitting, _ = fitted(tight=(both + top) / 2)
    orders = fitting.orders(on("tiny.yaml"))
    assert orders.freeze == ("layer.0",)
    assert fitting.orders(on("rpi4_4gb")) == Orders()


def test_a_rule_of_one_rank_and_all_layers_gets_smaller_batches_only(fitted: Fitted) -> None:
    """The geometric median needs the same tensors of everybody."""
    median = ("strategy=geometric_median", "cohort_size=5")
    fitting, runtime = fitted(*median, tight=100.0)
    top = needed(fitting, batch_size=1, checkpointing=True) + 0.001
    fitting, _ = fitted(*median, tight=top)
    choice = fitting.choices["tiny.yaml"]
    assert (choice.rank, choice.layers, choice.batch_size) == (2, 0, 1)
    plan = fitting.ranks(runtime.ranks)
    assert not plan.mixed


def test_no_device_gets_more_than_the_rank_that_it_was_given(fitted: Fitted) -> None:
    """``method.ranks`` gives Raspberry Pis rank 1 of 2, and there is room for 2."""
    ranks = ("strategy=flexlora", "+method.ranks={rpi4_4gb: 1}")
    fitting, runtime = fitted(*ranks, tight=900.0)
    assert (fitting.choices["rpi4_4gb"].rank, fitting.choices["tiny.yaml"].rank) == (1, 2)
    assert fitting.ranks(runtime.ranks).by_device == {"rpi4_4gb": 1, "tiny.yaml": 2}


def test_under_example_level_privacy_the_batch_stays(fitted: Fitted) -> None:
    """Its noise was fitted to it, and clients refuse orders of another: the device trains fewer layers, or nothing."""
    private = ("privacy=example_level", "privacy.delta=1e-3", "privacy.noise_multiplier=1")
    fitting, _ = fitted(*private, tight=100.0)
    both, top = needed(fitting), needed(fitting, layers=1)
    fitting, _ = fitted(*private, tight=(both + top) / 2)
    assert fitting.orders(on("tiny.yaml")) == Orders(freeze=("layer.0",))
    fitting, _ = fitted(*private, tight=top - 0.05)
    assert "tiny.yaml" not in fitting.choices


def test_a_deadline_takes_what_does_not_end_in_time(fitted: Fitted) -> None:
    """Three steps cost 60 ms of overhead whatever is trained in them, and the round trips 28."""
    assert fitted("round.deadline_s=0.5", tight=900.0)[0].choices["rpi4_4gb"].batch_size == 8
    assert fitted("round.deadline_s=0.08", tight=900.0)[0].choices["rpi4_4gb"].batch_size == 1
