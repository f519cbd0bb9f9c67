"""Noise and coins: the right distribution, never the same twice, in no process and for no seed.

Tolerances are 6 standard errors: a normal estimate lies beyond with chance 2e-9, so that the few dozen checks here fail
by chance less than once in a million runs, with room for estimates that are not quite normal. Standard errors of n
normal numbers: mean 1 / sqrt(n); mean square sqrt(2 / n); mean cube sqrt(15 / n); mean fourth power sqrt(96 / n),
because E x^8 - (E x^4)^2 = 105 - 9.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedpeft.privacy.noise import _CHUNK, SecureCoin, SecureNormal

N, FAR = 1_000_000, 6


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    return SecureNormal().draw(N)


def test_moments_are_those_of_a_normal(numbers: np.ndarray) -> None:
    assert abs(numbers.mean()) < FAR / math.sqrt(N)
    assert abs((numbers**2).mean() - 1) < FAR * math.sqrt(2 / N)
    assert abs((numbers**3).mean()) < FAR * math.sqrt(15 / N)
    assert abs((numbers**4).mean() - 3) < FAR * math.sqrt(96 / N)


def test_the_whole_distribution_is_normal(numbers: np.ndarray) -> None:
    """Kolmogorov and Smirnov: P(sqrt(n) D > t) <= 2 exp(-2 t^2) = 3e-8 at t = 3."""
    from scipy.stats import kstest

    assert math.sqrt(N) * kstest(numbers, "norm").statistic < 3


def test_tails_reach(numbers: np.ndarray) -> None:
    """Beyond 4 are 63.3 of a million on average, Poisson: fewer than 20 or more than 120 has a chance below 1e-9."""
    assert 20 <= (np.abs(numbers) > 4).sum() <= 120
    assert np.isfinite(numbers).all()


def test_the_extreme_bits_give_what_the_docstring_says() -> None:
    """All bits 0: u = 2^-53, radius sqrt(-2 ln u) = sqrt(106 ln 2) = 8.5717; half of four is twice it. All 1: u = 1."""
    for bits, radius in ((0, 2 * 8.5717), (2**64 - 1, 0.0)):
        noise = SecureNormal()
        noise._keystream.words = lambda count, bits=bits: np.full(count, bits, dtype=np.uint64)  # type: ignore[method-assign]
        assert np.hypot(*noise.draw(2)) == pytest.approx(radius, abs=1e-4)


def test_numbers_of_one_draw_do_not_depend_on_each_other(numbers: np.ndarray) -> None:
    """The two of one radius stand half a chunk apart; a correlation of n pairs has the standard error 1 / sqrt(n)."""
    for apart in (1, _CHUNK // 2, _CHUNK, N // 2):
        one, other = numbers[:-apart], numbers[apart:]
        for power in (1, 2):
            assert abs(np.corrcoef(one**power, other**power)[0, 1]) < FAR / math.sqrt(len(one))


def test_shapes_types_and_scale() -> None:
    noise = SecureNormal()
    assert noise.draw((2, 3)).shape == (2, 3)
    assert noise.draw(()).shape == ()
    assert noise.draw(0).shape == (0,)
    assert noise.draw((3, 0)).shape == (3, 0)
    assert noise.draw(7).dtype == np.float64
    assert abs(noise.draw(100_001, std=1e-3).std() / 1e-3 - 1) < FAR / math.sqrt(2 * 100_001)
    assert not noise.draw(5, std=0.0).any()


def test_a_million_numbers_take_less_than_a_third_of_a_second() -> None:
    noise = SecureNormal()
    noise.draw(10)
    began = time.process_time()
    noise.draw(N)
    assert time.process_time() - began < 0.3


# -- never the same twice -------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[], list[float]]] = {
    "normal": lambda: SecureNormal().draw(4).tolist(),
    "coin": lambda: SecureCoin().flip(0.5, 200).tolist(),
    "shuffle": lambda: SecureCoin().shuffle(list(range(60))),
}


@pytest.mark.parametrize("name", SOURCES)
def test_no_seed_repeats_it(name: str) -> None:
    drawn = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        drawn.append(SOURCES[name]())
    assert drawn[0] != drawn[1]


def test_a_stream_does_not_repeat_itself() -> None:
    noise = SecureNormal()
    words = [noise._keystream.words(1000) for _ in range(20)]
    noise._keystream._left = 0
    words.append(noise._keystream.words(1000))
    assert len(np.unique(np.concatenate(words))) == 21_000


def test_a_forked_child_draws_other_numbers() -> None:
    """Two clients with one noise would have none: their difference is without it."""
    noise = SecureNormal()
    noise.draw(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, noise.draw(8).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 64))
    os.close(reader)
    os.close(writer)
    assert not np.isin(theirs, noise.draw(8)).any()


@pytest.mark.parametrize("source", [SecureNormal, SecureCoin])
def test_it_cannot_be_copied(source: type[SecureNormal] | type[SecureCoin]) -> None:
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copied(source())


# -- coins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.001])
def test_coins_fall_at_their_rate(rate: float) -> None:
    heads = int(SecureCoin().flip(rate, N).sum())
    assert abs(heads - N * rate) < FAR * math.sqrt(N * rate * (1 - rate)) + 1


def test_sure_coins_and_wrong_rates() -> None:
    coin = SecureCoin()
    assert coin.flip(1.0, 1000).all()
    assert not coin.flip(0.0, 1000).any()
    assert coin.flip(0.3, 0).shape == (0,)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="rate must be in"):
            coin.flip(rate, 1)


def test_sizes_of_poisson_samples_vary_as_they_must() -> None:
    """50 coins at 0.2: size 10 on average, variance 8. A sample of fixed size has variance 0, and other accounting.

    Over 4,000 samples the mean has the standard error sqrt(8 / 4000), the variance about 8 sqrt(2 / 4000) = 0.18.
    """
    coin = SecureCoin()
    sizes = np.array([len(coin.subset(range(50), 0.2)) for _ in range(4000)])
    assert abs(sizes.mean() - 10) < FAR * math.sqrt(8 / 4000)
    assert abs(sizes.var() - 8) < FAR * 0.19
    assert coin.subset(["a", "b"], 1.0) == ["a", "b"]
    assert coin.subset([], 0.5) == []


def test_every_order_is_equally_likely() -> None:
    """6 orders of 3 things in 6,000 shuffles: 1,000 each, standard error sqrt(6000 * 1/6 * 5/6) = 28.9."""
    coin = SecureCoin()
    orders: dict[tuple[int, ...], int] = {}
    for _ in range(6000):
        order = tuple(coin.shuffle([0, 1, 2]))
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 6
    assert all(abs(count - 1000) < FAR * 28.9 for count in orders.values())
