"""Robust rules: by hand, within their bounds under attack, where they break down, and refused where f is too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, honest, nodes, small_global
from flwr.app import ConfigRecord

from fedpeft import config as cfg
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.events import Event, RoundKept
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.geometric_median import GeometricMedian
from fedpeft.strategies.krum import Krum
from fedpeft.strategies.median import CoordinateMedian
from fedpeft.strategies.multi_krum import MultiKrum
from fedpeft.strategies.norm_clipping import NormClipping
from fedpeft.strategies.trimmed_mean import TrimmedMean

ALL: tuple[type[Any], ...] = (CoordinateMedian, TrimmedMean, Krum, MultiKrum, GeometricMedian, NormClipping)
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
N, F, D = 11, 4, 60
"""A round of 2 f + 3 clients, and numbers in a model."""


def given(changes: np.ndarray, examples: list[int] | None = None) -> tuple[Tensors, list[ClientUpdate]]:
    """Return a model of two tensors and updates that change it by these rows."""
    half = changes.shape[1] // 2
    start = {"a": np.full(half, 2.0, np.float32), "b": np.full((changes.shape[1] - half, 1), -1.0, np.float32)}
    return start, [
        ClientUpdate(
            client=ClientInfo(client_id=k, node_id=k, num_examples=1),
            tensors={
                "a": (start["a"] + row[:half]).astype(np.float32),
                "b": (start["b"] + row[half:, None]).astype(np.float32),
            },
            num_examples=examples[k] if examples else 1,
            sent=start,
        )
        for k, row in enumerate(changes)
    ]


def change(strategy: FedPeft, changes: np.ndarray, examples: list[int] | None = None) -> np.ndarray:
    """Return what a strategy changes the model by."""
    start, updates = given(changes, examples)
    new = strategy.aggregate(start, updates)
    assert all(value.dtype == np.float32 for value in new.values())
    return np.concatenate([new["a"] - start["a"], (new["b"] - start["b"]).ravel()])


LINE = np.repeat(np.array([[0.0], [1.0], [2.0], [9.0], [10.0]]), 2, axis=1) / np.array([1.0, 2.0])
"""Five clients on a line: changes t (1, 1/2) for t = 0, 1, 2, 9, 10; squared distances are 5/4 of those of t."""


def test_no_more_are_kept_than_may_be_honest_among_the_replies() -> None:
    """keep = 6 of a cohort of 7; five reply, f = 1: t = 10, of the worst score, is out. (0 + 1 + 2 + 9) / 4 = 3."""
    assert np.allclose(change(MultiKrum(cohort_size=7, keep=6), LINE), [3, 1.5])


@every
def test_a_tensor_that_did_not_travel_stays(kind: type[Any]) -> None:
    start, updates = given(LINE)
    after = kind(cohort_size=5).aggregate({**start, "c": np.float32([7])}, updates)
    assert (list(after), after["c"].tolist()) == (["a", "b", "c"], [7.0])


def test_a_median_that_was_not_reached_is_said(caplog: pytest.LogCaptureFixture) -> None:
    points = np.random.default_rng(6).normal(size=(9, 4))
    change(GeometricMedian(cohort_size=9, max_iterations=2), points)
    assert "after 2 steps" in caplog.text


@pytest.mark.parametrize(
    ("strategy", "t"),
    [
        (CoordinateMedian(cohort_size=5), 2.0),
        (TrimmedMean(cohort_size=5), (1 + 2 + 9) / 3),
        (TrimmedMean(cohort_size=5, num_malicious=None, fraction=0.2), (1 + 2 + 9) / 3),
        (Krum(cohort_size=5), 1.0),
        (MultiKrum(cohort_size=5, keep=3), 1.0),
        (MultiKrum(cohort_size=5), (0 + 1 + 2 + 9) / 4),
        (MultiKrum(cohort_size=5, keep=1), 1.0),
        (GeometricMedian(cohort_size=5), 2.0),
        (NormClipping(cohort_size=5), (0 + 1 + 2 + 2 + 2) / 5),
        (NormClipping(cohort_size=5, clip_norm=np.sqrt(1.25)), (0 + 1 + 1 + 1 + 1) / 5),
    ],
    ids=lambda one: type(one).__name__,
)
def test_rules_by_hand(strategy: FedPeft, t: float) -> None:
    """f = 1, so Krum's scores sum two nearest: t = 0: 1 + 4, 1: 1 + 1, 2: 1 + 4, 9: 1 + 49, 10: 1 + 64.

    Order 1, 0, 2, 9, 10: Krum takes 1, m = 3 takes 0, 1, 2 and n - f = 4 takes 9 too. The middle length is that of
    t = 2; the length of t = 1 is the root of 1.25.
    """
    assert np.allclose(change(strategy, LINE), [t, t / 2], atol=1e-5)


def test_weights_count_where_they_are_asked_for() -> None:
    """Examples 1, 1, 1, 1, 5. The last has more than half of the weight: both medians are its 10.

    Trimmed: 1, 2, 9 have equal weights. Kept by Krum: 0, 1, 2, 9. Clipped to t = 2: (0 + 1 + 2 + 2 + 5 x 2) / 9.
    """
    examples = [1, 1, 1, 1, 5]

    def t(kind: type[Any]) -> float:
        assert np.allclose(change(kind(cohort_size=5), LINE, examples), change(kind(cohort_size=5), LINE))
        return float(change(kind(cohort_size=5, weighted=True), LINE, examples)[0])

    assert t(CoordinateMedian) == 10.0
    assert t(GeometricMedian) == pytest.approx(10.0, abs=1e-4)
    assert t(TrimmedMean) == 4.0
    assert t(MultiKrum) == 3.0
    assert t(NormClipping) == pytest.approx(15 / 9, rel=1e-6)


def test_krum_gives_back_one_clients_tensors_bit_for_bit() -> None:
    start, updates = given(np.random.default_rng(1).normal(size=(9, D)))
    new = Krum(cohort_size=9, num_malicious=2).aggregate(start, updates)
    same = [all(new[key].tobytes() == value.tobytes() for key, value in one.tensors.items()) for one in updates]
    assert same.count(True) == 1
    assert not any(np.shares_memory(new[key], one.tensors[key]) for one in updates for key in new)


# -- attacks: F of N clients know everybody's changes ------------------------------------------------------------------


def crowd() -> np.ndarray:
    """Return the honest clients' changes, as far from each other as from where they began."""
    rng = np.random.default_rng(8)
    return 0.1 + rng.normal(size=(N - F, D)) * 0.1


def flipped(good: np.ndarray) -> np.ndarray:
    """Ten times the honest mean, backwards."""
    return np.repeat(-10 * good.mean(0, keepdims=True), F, axis=0)


def little(good: np.ndarray) -> np.ndarray:
    """Each coordinate a standard deviation and a half off the mean: within the crowd."""
    return np.repeat(good.mean(0, keepdims=True) - 1.5 * good.std(0), F, axis=0)


def far(good: np.ndarray) -> np.ndarray:
    """As far off as the guard would ever let through."""
    return np.full((F, D), 1e6)


def bound(kind: type[Any], good: np.ndarray) -> float:
    """Return how far from the honest mean a rule may be taken by anything that F clients send.

    With R the largest honest distance from the mean m:

    - Krum: honest scores are at most (n - f - 2) (2 R)^2, and of the chosen one's n - f - 2 nearest at least
      n - 2 f - 1 are honest, so that one of them is within 2 R ((n - f - 2) / (n - 2 f - 1))^(1/2) of it. The n - f
      best scores are no larger than the worst honest one, hence Multi-Krum likewise.
    - Geometric median z: sum ||z - x_k|| <= sum ||m - x_k||. Honest terms lose at least ||z - m|| - 2 R, attackers'
      gain at most ||z - m||: (n - f) (||z - m|| - 2 R) <= f ||z - m||.
    - Clipping: honest lengths are between l and L, C is a median and so at most L. Honest parts are within
      R + L - l of m, attackers' within L + ||m||.
    """
    m = good.mean(0)
    lengths, radius = np.linalg.norm(good, axis=1), float(np.linalg.norm(good - m, axis=1).max())
    if kind in (Krum, MultiKrum):
        return radius + 2 * radius * float(np.sqrt((N - F - 2) / (N - 2 * F - 1)))
    if kind is GeometricMedian:
        return 2 * (N - F) / (N - 2 * F) * radius
    return float(radius + lengths.max() - lengths.min() + F / N * (lengths.max() + np.linalg.norm(m)))


@every
@pytest.mark.parametrize("attack", [flipped, little, far], ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("first", [True, False])
def test_colluding_attackers_stay_within_the_bound(
    kind: type[Any], attack: Callable[[np.ndarray], np.ndarray], first: bool
) -> None:
    good = crowd()
    bad = attack(good)
    sent = np.concatenate([bad, good] if first else [good, bad])
    got = change(kind(cohort_size=N, num_malicious=F), sent)
    if kind in (CoordinateMedian, TrimmedMean):
        assert (good.min(0) - 1e-6 <= got).all()
        assert (got <= good.max(0) + 1e-6).all()
    else:
        assert np.linalg.norm(got - good.mean(0)) <= bound(kind, good) + 1e-6


@every
def test_the_plain_mean_is_moved_by_the_same_attackers(kind: type[Any]) -> None:
    """Backwards goes the mean: 7/11 - 40/11 = -3 times the honest one. No robust rule turns round."""
    good = crowd()
    sent = np.concatenate([flipped(good), good])
    honest_mean = good.mean(0)
    assert np.allclose(change(FedAvg(cohort_size=N), sent), -3 * honest_mean, atol=1e-5)
    assert change(kind(cohort_size=N, num_malicious=F), sent) @ honest_mean > 0
    assert np.linalg.norm(change(FedAvg(cohort_size=N), np.concatenate([far(good), good]))) > 1e6


@pytest.mark.parametrize(
    ("kind", "breaks_at"),
    [(CoordinateMedian, 6), (TrimmedMean, 5), (Krum, 6), (MultiKrum, 5), (GeometricMedian, 6), (NormClipping, 6)],
)
def test_breakdown_points(kind: type[Any], breaks_at: int) -> None:
    """Attackers all in one place 10^6 away, f = 4 of n = 11.

    Medians, of lengths too, go over with the majority, 6 of 11. A trimmed mean is lost with the f + 1st, and so is the
    mean of n - f updates. Krum sums n - f - 2 = 5 distances, which are all zero for 6 attackers and not for 5.
    """
    good = np.random.default_rng(3).normal(size=(N, D))

    def moved_by(count: int) -> float:
        return float(np.linalg.norm(change(kind(cohort_size=N, num_malicious=F), attacked(good, count))))

    assert max(moved_by(count) for count in range(breaks_at)) < 100
    assert moved_by(breaks_at) > 1e5


def attacked(good: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([np.full((count, good.shape[1]), 1e6), good[count:]])


@every
def test_who_is_who_does_not_matter(kind: type[Any]) -> None:
    """Any order of clients gives the same model; sums in another order may differ in the last digits of float64."""
    rng = np.random.default_rng(12)
    changes = rng.normal(size=(N, D))
    base = change(kind(cohort_size=N, num_malicious=F), changes)
    for _ in range(4):
        other = change(kind(cohort_size=N, num_malicious=F), changes[rng.permutation(N)])
        assert np.allclose(base, other, atol=2e-6, rtol=0)


def test_the_flat_update_is_what_is_compared() -> None:
    """Krum over two tensors is Krum over them end to end: here each tensor alone would choose someone else.

    By a alone client 1 (0.01 + 0.01), by b alone client 3 likewise; by both client 2: 0.65 + 0.65 (times two), the
    next best being 1 and 3 with 0.65 + 1.62.
    """
    a, b = np.array([0.0, 0.1, 0.2, 1.0, 3.0]), np.array([3.0, 1.0, 0.2, 0.1, 0.0])
    both = np.stack([a, a, b, b], axis=1)
    assert np.allclose(change(Krum(cohort_size=5), both), 0.2)
    assert np.allclose(change(Krum(cohort_size=5), both[:, :2]), 0.1)
    assert np.allclose(change(Krum(cohort_size=5), both[:, 2:]), 0.1)


# -- refusals ---------------------------------------------------------------------------------------------------------


@every
def test_a_cohort_too_small_for_f_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.__name__} needs 2 f \+ 3 = 7 clients .* got cohort_size=6"):
        kind(cohort_size=6, num_malicious=2)
    kind(cohort_size=7, num_malicious=2)
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match=r"strategy\.num_malicious must be a whole number"):
            kind(cohort_size=9, num_malicious=wrong)


@every
def test_too_few_replies_are_refused(kind: type[Any]) -> None:
    start, updates = given(LINE)
    with pytest.raises(WireError, match=r"4 good replies, .* needs 2 f \+ 3 = 5 to bear f = 1"):
        kind(cohort_size=5).aggregate(start, updates[:4])


@every
def test_a_round_with_too_few_replies_keeps_the_model(kind: type[Any]) -> None:
    strategy, events = kind(cohort_size=6), list[Event]()
    strategy.observers = (events.append,)
    clients = nodes(6)
    messages = list(strategy.configure_train(1, wire.encode(small_global()), ConfigRecord(), FakeGrid(clients)))
    replies = [reply for m in messages for reply in honest(clients[m.metadata.dst_node_id], m)]
    assert strategy.aggregate_train(1, replies[:4]) == (None, None)
    (event,) = [one for one in events if isinstance(one, RoundKept)]
    assert event.reason.startswith("4 good replies, ")
    assert strategy.aggregate_train(1, replies[:5])[0] is not None


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        (TrimmedMean, {"fraction": 0.1}, "takes one of num_malicious and fraction"),
        (TrimmedMean, {"num_malicious": None}, "takes one of num_malicious and fraction"),
        (TrimmedMean, {"num_malicious": None, "fraction": 0.5}, r"strategy\.fraction must be in"),
        (TrimmedMean, {"num_malicious": None, "fraction": 0.21}, r"needs 2 f \+ 3 = 7 clients"),
        (MultiKrum, {"keep": 5}, r"strategy\.keep must be in 1\.\.cohort_size - num_malicious \(4\)"),
        (GeometricMedian, {"tolerance": 0.0}, r"strategy\.tolerance must be"),
        (GeometricMedian, {"max_iterations": 0}, r"strategy\.max_iterations must be"),
        (NormClipping, {"clip_norm": 0.0}, r"strategy\.clip_norm must be"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Any], settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        kind(cohort_size=5, **settings)


def test_the_config_names_what_to_change() -> None:
    with pytest.raises(ConfigError, match=r"Krum needs 2 f \+ 3 = 11 clients a round .* lower strategy\.num_malicious"):
        cfg.build(cfg.compose(["strategy=krum", "strategy.num_malicious=4"])["strategy"])
    assert not cfg.build(cfg.compose(["strategy=median"])["strategy"]).bears_sparse
