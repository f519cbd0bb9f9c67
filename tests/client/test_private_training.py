"""DP-SGD without noise is SGD; with noise, the noise is what is claimed, and nobody can repeat it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from private_models import FREE, ROWS, Coins, attached, run_of, task

from fedpeft.client.private_training import Chance, admit, train_private
from fedpeft.client.pulls import Pulls
from fedpeft.client.trainer import TrainResult, TrainSettings, train
from fedpeft.core.pairs import lora_pairs
from fedpeft.methods.base import Tunable
from fedpeft.privacy import clipped_sum
from fedpeft.privacy.noise import SecureCoin, SecureNormal

EIGHT = ROWS[:8]


def settings(**changes: Any) -> TrainSettings:
    plain = {"local_steps": 3, "batch_size": 8, "lr": 0.5, "optimizer": "sgd", "max_grad_norm": None}
    return TrainSettings(**{**plain, **changes})


def privately(
    tunable: Tunable, model: str, run: Any, chance: Chance | None = None, pulls: Pulls | None = None, **changes: Any
) -> TrainResult:
    texts, mode = task(model), run.settings.mode
    takes_part = admit(tunable, texts, EIGHT, tunable.trainable, mode=mode, dtype="float32", what="it")
    return train_private(
        tunable, texts, EIGHT, settings(**changes), run, dtype="float32", flops=FREE, parameters=tunable.trainable,
        takes_part=takes_part, chance=chance, pulls=pulls,
    )  # fmt: skip


def plainly(tunable: Tunable, model: str, pulls: Pulls | None = None, **changes: Any) -> None:
    train(tunable, task(model), EIGHT, settings(**changes), dtype="float32", seed=0, flops=FREE, pulls=pulls)


def all_in() -> Chance:
    return Chance(coins=Coins(up=True), noise=None)


def assert_equal(one: Tunable, other: Tunable) -> None:
    for key, value in one.shared.items():
        torch.testing.assert_close(value, other.shared[key], rtol=1e-4, atol=2e-6, msg=key)


@pytest.mark.parametrize("mode", ["hooks", "microbatch"])
@pytest.mark.parametrize(
    ("method", "model"),
    [("lora", "bert"), ("adalora", "bert"), ("prompt", "llama-lm"), ("ia3", "gpt2"), ("lora_sb", "gpt2-lm")],
)
def test_without_noise_and_clipping_it_is_plain_training(method: str, model: str, mode: str) -> None:
    """Everyone is in every batch of both; AdaLoRA's regulariser, and factors that take no part, come out the same."""
    private, plain = attached(method, model), attached(method, model)
    privately(private, model, run_of(mode=mode), all_in())
    plainly(plain, model)
    assert_equal(private, plain)


def test_pulls_are_the_same_as_without_privacy() -> None:
    """FedProx, SCAFFOLD and HetLoRA's tails join after the noise; without noise it makes no difference."""

    def pulls(tunable: Tunable) -> Pulls:
        pairs, shared = lora_pairs(tunable.shared), tunable.shared
        return Pulls(
            prox=0.1,
            anchors=[(value, value.detach().clone() + 1) for value in shared.values()],
            control=[(value, torch.full_like(value, 0.01)) for value in shared.values()],
            tails=[(shared[pair.a], shared[pair.b], 4) for pair in pairs],
            tail_weight=0.05,
        )

    private, plain, without = (attached("lora", "bert") for _ in range(3))
    privately(private, "bert", run_of(), all_in(), pulls(private))
    plainly(plain, "bert", pulls(plain))
    plainly(without, "bert")
    assert_equal(private, plain)
    with pytest.raises(AssertionError):
        assert_equal(plain, without)


def test_a_batch_in_pieces_is_one_step_over_the_expected_size() -> None:
    """Eight come where four are expected, in two pieces: the sum over 4 is the mean over 8 at twice the rate."""
    private, plain = attached("lora", "bert"), attached("lora", "bert")
    privately(private, "bert", run_of(batch=4), all_in())
    plainly(plain, "bert", lr=1.0)
    assert_equal(private, plain)


def test_checkpointing_under_microbatch_changes_nothing() -> None:
    one, other = attached("lora", "llama-lm"), attached("lora", "llama-lm")
    for tunable, checkpointing in ((one, True), (other, False)):
        run = run_of(mode="microbatch")
        privately(tunable, "llama-lm", run, all_in(), gradient_checkpointing=checkpointing)
    assert_equal(one, other)


def test_gradients_are_clipped_example_by_example() -> None:
    """One step of rate 1 along the mean of 8 clipped gradients: at most C in length, and not nothing."""
    tunable = attached("lora", "bert")
    before = [value.detach().clone() for value in tunable.trainable]
    privately(tunable, "bert", run_of(clip=1e-3, steps=1), all_in(), lr=1.0)
    moved = torch.cat([(value - old).flatten() for value, old in zip(tunable.trainable, before, strict=True)]).norm()
    assert 1e-4 < float(moved.detach()) <= 1e-3 * (1 + 1e-3)


def noise_of(seed: int, z: float = 1.5, clip: float = 0.25) -> np.ndarray:
    """What one step of nobody at rate 1 adds, times what it was divided by: 8."""
    tunable = attached("lora", "bert")
    before = [value.detach().clone() for value in tunable.trainable]
    torch.manual_seed(seed)
    chance = Chance(coins=Coins(up=False), noise=Chance.secure().noise)
    privately(tunable, "bert", run_of(z=z, clip=clip, steps=1), chance, lr=1.0)
    moved = [(value - old).flatten() for value, old in zip(tunable.trainable, before, strict=True)]
    return 8 * torch.cat(moved).detach().double().numpy()


def is_as_claimed(noise: np.ndarray, std: float) -> bool:
    """Mean 0 and this standard deviation, within 3 standard errors (s / sqrt(n) and s / sqrt(2 n)), for 4 tensors."""
    n = noise.size
    return abs(noise.mean()) <= 3 * std / np.sqrt(n) and abs(noise.std() - std) <= 3 * std / np.sqrt(2 * n)


def test_an_empty_batch_is_a_step_of_noise_as_claimed() -> None:
    """z C = 0.375 on each number. One draw in 200 is beyond 3 standard errors; three such draws are not."""
    assert any(is_as_claimed(noise_of(0), 0.375) for _ in range(3))


def test_noise_a_quarter_as_strong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = clipped_sum.noised_sum

    def weak(*args: Any, noise_multiplier: float, **rest: Any) -> Any:
        return real(*args, noise_multiplier=noise_multiplier / 4, **rest)

    monkeypatch.setattr(clipped_sum, "noised_sum", weak)
    assert not any(is_as_claimed(noise_of(0), 0.375) for _ in range(3))


def test_two_runs_of_one_seed_have_other_noise_and_other_batches() -> None:
    assert not np.isclose(noise_of(0), noise_of(0)).mean() > 0.01
    one, other = Chance.secure(), Chance.secure()
    assert (one.coins.flip(0.5, 256) != other.coins.flip(0.5, 256)).any()


def test_noise_comes_from_the_operating_system_and_from_no_generator_of_torch() -> None:
    """A Mersenne Twister's state can be computed from what it let out."""
    chance = Chance.secure()
    assert (type(chance.noise), type(chance.coins)) == (SecureNormal, SecureCoin)


def test_noise_is_added_in_float64_and_rounded_once() -> None:
    """0.25 + (2^-30 - 0.25) = 2^-30. Noise that became float32 before the sum would leave 0 of it."""

    class Nearly:
        def draw(self, shape: Any, *, std: float = 1.0) -> np.ndarray:
            assert std == 1.5 * 2.0
            return np.full(shape, 2.0**-30 - 0.25)

    (total,) = clipped_sum.noised_sum(
        [torch.zeros(1)], [[torch.full((1, 1), 0.25)]], clip_norm=2.0, noise_multiplier=1.5, noise=Nearly()
    )
    assert (total.dtype, float(total)) == (torch.float32, 2.0**-30)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns_in_spite_of_some_noise_and_tells_no_loss(optimizer: str) -> None:
    tunable = attached("lora", "bert")
    result = privately(tunable, "bert", run_of(z=0.5, clip=1.0, steps=2), optimizer=optimizer, lr=0.01)
    assert np.isnan(result.loss)
    assert result.steps == 2
    assert all(bool(torch.isfinite(value).all()) for value in tunable.trainable)


def test_an_example_without_a_finite_gradient_adds_nothing() -> None:
    """[3, 4] is clipped to length 1; infinity and NaN are left out, and do not spoil the others."""
    samples = [torch.tensor([[3.0, 4.0], [np.inf, 0.0], [0.0, np.nan], [0.0, 0.5]])]
    (total,) = clipped_sum.noised_sum([torch.zeros(2)], [samples], clip_norm=1.0, noise_multiplier=0.0, noise=None)
    torch.testing.assert_close(total, torch.tensor([0.6, 1.3]))


def test_clipping_is_flat_over_all_tensors() -> None:
    """Lengths 3 and 4 in two tensors are 5 together: both are multiplied by 1 / 5 under a clip norm of 1."""
    first, second = torch.tensor([[3.0]]), torch.tensor([[[0.0, 4.0]]])
    sums = clipped_sum.noised_sum(
        [torch.zeros(1), torch.zeros(1, 2)], [[first, second]], clip_norm=1.0, noise_multiplier=0.0, noise=None
    )
    torch.testing.assert_close(torch.cat([one.flatten() for one in sums]), torch.tensor([0.6, 0.0, 0.8]))


def test_noise_without_a_source_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a source of noise"):
        clipped_sum.noised_sum([torch.zeros(1)], [], clip_norm=1.0, noise_multiplier=1.0, noise=None)


def test_hooks_are_gone_after_a_round_and_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tunable = attached("prefix", "bert")

    def hooks() -> list[int]:
        return [len(m._forward_hooks) + len(m._backward_hooks) for m in tunable.model.modules()]

    before = hooks()
    privately(tunable, "bert", run_of(), all_in())
    assert hooks() == before

    def fail(*args: Any, **rest: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(clipped_sum, "noised_sum", fail)
    chance = all_in()
    takes_part = (True,) * len(tunable.trainable)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_private(
            tunable, task("bert"), EIGHT, settings(), run_of(), dtype="float32", flops=FREE,
            parameters=tunable.trainable, takes_part=takes_part, chance=chance,
        )  # fmt: skip
    assert hooks() == before
    assert not any(hasattr(value, "grad_sample") for value in tunable.model.parameters())
    assert "heads" not in vars(tunable.model.prefix)
