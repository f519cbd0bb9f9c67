"""What fits a device is the best of the candidates that its memory and the deadline allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.orders import matches
from fedpeft.core.types import Work
from fedpeft.device_profiles.fit import Choice, candidates, fit, fits, layers_below, needed_mb, usable_mb
from fedpeft.device_profiles.memory import MIB, PROCESS_MB, StepMemory
from fedpeft.device_profiles.presets import load_profile
from fedpeft.device_profiles.schema import DeviceProfile

STEP = StepMemory(
    weights_bytes=100 * MIB, gradient_bytes=1, optimizer_bytes=20 * MIB, saved_bytes=30, step_bytes=50 * MIB,
    moved_bytes=1, copies_bytes=10 * MIB,
)  # fmt: skip


def device(total_mb: int = 1000) -> DeviceProfile:
    """A device that may use half its memory, wastes none, calculates 10 GFLOP/s and is otherwise instant."""
    profile = load_profile("rpi5_8gb")
    compute = replace(
        profile.compute,
        achievable_gflops=replace(profile.compute.achievable_gflops, fp32=20.0),
        train_efficiency=0.5, step_overhead_ms=0.0, throttle=None,
    )  # fmt: skip
    memory = replace(profile.memory, total_mb=total_mb, usable_fraction=0.5, allocator_overhead=1.0)
    network = replace(profile.network, rtt_ms=0.0)
    return replace(profile, compute=compute, memory=memory, network=network)


def work(choice: Choice) -> Work:
    """100 MiB, 10 a rank, 20 a layer and 5 an example, of which checkpointing saves half; an example takes 1 s a step,
    as much again for checkpointing.
    """
    activations = choice.batch_size * 5 * (0.5 if choice.checkpointing else 1.0)
    needed = 100 + 10 * choice.rank + 20 * choice.layers + activations
    passes = 2 if choice.checkpointing else 1
    return Work(flops=1e10 * choice.batch_size * passes, bytes_down=0, bytes_up=0, peak_memory_bytes=int(needed * MIB))


def choice(rank: int, layers: int, batch_size: int, checkpointing: bool = False) -> Choice:
    return Choice(rank=rank, layers=layers, batch_size=batch_size, checkpointing=checkpointing)


CHOICES = candidates(rank=8, batch_size=4, num_layers=4, can_checkpoint=True)


def test_a_step_fits_in_the_usable_share() -> None:
    """100 + 20 + 10 + 50 MiB and the process; half of 2 (180 + process) is just enough."""
    needed = 180 + PROCESS_MB
    assert STEP.peak_bytes == 180 * MIB
    assert needed_mb(device(), STEP) == needed
    assert usable_mb(device(1000)) == 500
    assert fits(device(2 * needed), STEP)
    assert not fits(device(2 * needed - 1), STEP)
    wasteful = replace(device(2 * needed), memory=replace(device(2 * needed).memory, allocator_overhead=1.01))
    assert not fits(wasteful, STEP)


def test_candidates_halve_ranks_and_batches_and_cut_layers() -> None:
    """Ranks 5, 2, 1; of 6 layers 6, 5 (4.5 rounded up), 3, 2 (1.5); batches 3, 1."""
    found = candidates(rank=5, batch_size=3, num_layers=6, can_checkpoint=False)
    assert [one.rank for one in found[::8]] == [5, 2, 1]
    assert [(one.layers, one.batch_size) for one in found[:8]] == [(n, b) for n in (6, 5, 3, 2) for b in (3, 1)]
    assert not any(one.checkpointing for one in found)
    assert {one.rank for one in candidates(rank=8, batch_size=1, num_layers=2, can_checkpoint=True)} == {8, 4, 2, 1}


def test_without_ranks_or_layers_there_is_less_to_choose() -> None:
    assert candidates(rank=0, batch_size=1, num_layers=0, can_checkpoint=False) == [choice(0, 0, 1)]
    alike = candidates(rank=8, batch_size=1, num_layers=1, can_checkpoint=True, mixed_ranks=False)
    assert alike == [choice(8, 1, 1), choice(8, 1, 1, True)]


@pytest.mark.parametrize("bad", [{"rank": -1}, {"num_layers": -1}, {"batch_size": 0}])
def test_sizes_that_mean_nothing_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="candidates need"):
        candidates(**{"rank": 8, "batch_size": 4, "num_layers": 4, **bad}, can_checkpoint=True)


@pytest.mark.parametrize(
    ("usable", "best"),
    [
        (280, choice(8, 4, 4)),  # 100 + 80 + 80 + 20
        (279, choice(8, 4, 4, True)),  # 270
        (269, choice(8, 4, 2, True)),  # 265, where 2 without would need 270
        (263, choice(8, 4, 1, True)),  # 262.5
        (262, choice(8, 3, 4)),  # 260: fewer layers rather than a smaller rank
        (204, choice(8, 1, 1, True)),  # 202.5
        (202, choice(4, 2, 4)),  # 200: with 3 layers one checkpointed example needs 202.5
    ],
)
def test_the_best_that_memory_allows(usable: int, best: Choice) -> None:
    """Rank before layers, layers before batch, batch before doing without checkpointing."""
    assert fit(device(2 * usable), CHOICES, work) == best


def test_a_deadline_chooses_among_what_fits() -> None:
    """A second an example: 2 in 2.5 s; with memory for 4 layers only under checkpointing, 1 example in 2 s."""
    assert fit(device(10**4), CHOICES, work, deadline_s=2.5) == choice(8, 4, 2)
    assert fit(device(2 * 264), CHOICES, work, deadline_s=2.5) == choice(8, 4, 1, True)


def test_where_nothing_is_in_time_it_is_the_fastest_that_memory_holds() -> None:
    """One example takes a second, and two under checkpointing, which is all that 250 MiB hold."""
    assert fit(device(10**4), CHOICES, work, deadline_s=0.5) == choice(8, 4, 1)
    tight = fit(device(2 * 264), CHOICES, work, deadline_s=0.5)
    assert tight is not None
    assert tight.batch_size == 1
    assert fit(device(2 * 132), CHOICES, work, deadline_s=0.5) is None


def test_nothing_may_fit_and_that_is_found_out_cheaply() -> None:
    """The least choice needs 100 + 10 + 20 + 2.5 MiB. One work for each rank and number of layers is predicted."""
    asked: list[Choice] = []

    def counted(one: Choice) -> Work:
        asked.append(one)
        return work(one)

    assert fit(device(2 * 132), CHOICES, counted) is None
    assert len(asked) == 4 * 4
    assert fit(device(2 * 133), CHOICES, work) == choice(1, 1, 1, True)
    assert fit(device(), [], work) is None


def test_a_work_without_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="its memory is not known"):
        fit(device(), CHOICES, lambda one: replace(work(one), peak_memory_bytes=0))


def test_the_lowest_layers_freeze_and_the_head_never() -> None:
    keys = [f"base_model.model.encoder.layer.{n}.query.lora_A.weight" for n in (0, 1, 2, 10)]
    keys.append("base_model.model.classifier.weight")
    names = layers_below(keys, 2)
    assert names == ("layer.0", "layer.1")
    assert [key for key in keys if not matches(key, names)] == keys[2:]
    assert layers_below(keys, 0) == ()
    assert layers_below(keys, 9) == ("layer.0", "layer.1", "layer.2", "layer.10")
