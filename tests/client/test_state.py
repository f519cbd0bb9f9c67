"""Personal state: a replayed round finds what it found the first time, and old files go when nobody can need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpeft.client.state import PersonalState
from fedpeft.core.errors import DataError
from fedpeft.core.types import Tensors


def tensors(value: float) -> Tensors:
    return {"head.bias": np.full(2, value, np.float32), "head.weight": np.full((2, 3), value, np.float32)}


def files(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("round-")) for path in folder.iterdir())


def value(state: PersonalState, before_round: int) -> float | None:
    loaded = state.load(before_round)
    return float(loaded["head.bias"][0]) if loaded else None


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert PersonalState(tmp_path / "client").load(1) == {}
    assert not (tmp_path / "client").exists()


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = {"head.bias": np.float32([-0.0, 1e-45]), "head.weight": np.float32([[0.1, 1 / 3, 3e38], [-1, 0, 1]])}
    PersonalState(tmp_path).save(1, odd, keep_from=0)
    back = PersonalState(tmp_path).load(2)
    assert all(back[key].tobytes() == odd[key].tobytes() for key in odd)


def test_a_round_starts_from_the_newest_file_before_it(tmp_path: Path) -> None:
    state = PersonalState(tmp_path)
    for server_round in (2, 5, 7):
        state.save(server_round, tensors(server_round), keep_from=0)
    assert [value(state, r) for r in (1, 2, 3, 5, 6, 7, 8, 100)] == [None, None, 2, 2, 5, 5, 7, 7]


def test_a_replayed_round_starts_from_what_it_started_from(tmp_path: Path) -> None:
    """The client got to round 6 before the crash; the server's last checkpoint is round 3."""
    state = PersonalState(tmp_path)
    for server_round in (1, 3, 4, 6):
        state.save(server_round, tensors(server_round), keep_from=min(server_round, 3))
    assert [value(state, r) for r in (4, 6)] == [3, 4]
    state.save(4, tensors(40), keep_from=3)
    assert [value(state, r) for r in (4, 5, 6)] == [3, 40, 40]


@pytest.mark.parametrize(
    ("keep_from", "left"),
    [
        (0, [1, 3, 5, 8]),
        (1, [1, 3, 5, 8]),
        (2, [1, 3, 5, 8]),
        (3, [3, 5, 8]),
        (4, [3, 5, 8]),
        (5, [5, 8]),
        (7, [5, 8]),
        (8, [8]),
    ],
)
def test_what_a_resumed_run_needs_is_kept(tmp_path: Path, keep_from: int, left: list[int]) -> None:
    """A run resumed after checkpoint c asks for the newest file up to c; older ones go, newer ones stay."""
    state = PersonalState(tmp_path)
    for server_round in (1, 3, 5):
        state.save(server_round, tensors(server_round), keep_from=0)
    state.save(8, tensors(8), keep_from=keep_from)
    assert files(tmp_path) == left


@pytest.mark.parametrize("damage", [b"", b"\x00" * 8, b"not safetensors at all"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, damage: bytes) -> None:
    state = PersonalState(tmp_path)
    state.save(1, tensors(1), keep_from=0)
    (tmp_path / "round-000001.safetensors").write_bytes(damage)
    with pytest.raises(DataError, match=r"round-000001.safetensors cannot be read: .* \(remove it to start"):
        state.load(2)


def test_a_cut_off_file_is_an_error(tmp_path: Path) -> None:
    state = PersonalState(tmp_path)
    state.save(1, tensors(1), keep_from=0)
    path = tmp_path / "round-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        state.load(2)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    state = PersonalState(tmp_path)
    (tmp_path / "round-x.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    state.save(1, tensors(1), keep_from=1)
    state.save(2, tensors(2), keep_from=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "round-000002.safetensors",
        "round-x.safetensors",
    ]
