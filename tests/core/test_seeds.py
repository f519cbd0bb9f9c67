"""Random streams never change: a run of last year repeats."""

from __future__ import annotations

import pytest

from fedpeft.core.seeds import derive, rng

PINNED = [
    ((0,), 4066689987807800415),
    ((0, "train", 1, 5), 5698494233418245705),
    ((1, "train", 1, 5), 11772584239651248033),
    ((0, "cohort", "train", 3), 16729798252540284149),
    ((2**62, "a"), 817682519249447711),
]


@pytest.mark.parametrize(("path", "seed"), PINNED)
def test_derived_seeds_are_pinned(path: tuple[int | str, ...], seed: int) -> None:
    assert derive(*path) == seed  # type: ignore[arg-type]


def test_streams_are_pinned() -> None:
    assert rng(0, "train", 1, 5).integers(1000, size=4).tolist() == [365, 741, 488, 310]
    assert rng(0, "cohort", "train", 1).choice(20, size=5, replace=False).tolist() == [12, 19, 15, 2, 1]


def test_equal_paths_give_equal_streams_and_share_no_state() -> None:
    one, other = rng(3, "x", 1), rng(3, "x", 1)
    one.random(100)
    assert other.random() == rng(3, "x", 1).random()


def test_different_paths_give_different_seeds() -> None:
    paths = [
        (0,),
        (1,),
        (0, 0),
        (0, "0"),
        (0, 1, 2),
        (0, 12),
        (0, "1", "2"),
        (0, "a", "b"),
        (0, "ab"),
        (0, "b", "a"),
        (0, "a"),
        (10,),
        (1, 0),
    ]
    assert len({derive(*path) for path in paths}) == len(paths)


def test_seeds_fill_64_bits() -> None:
    seeds = [derive(0, i) for i in range(64)]
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63
