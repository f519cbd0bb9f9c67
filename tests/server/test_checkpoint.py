"""Checkpoints: whole or not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.core.errors import CheckpointError
from fedpeft.server.checkpoint import Checkpoint, find_checkpoints, load_checkpoint, save_checkpoint


def make(server_round: int) -> Checkpoint:
    tensors = {"b": np.full((2, 3), server_round, np.float32), "a": np.arange(4, dtype=np.float64)}
    state = {"momentum": np.ones(3, np.float32) * server_round, "count": 7, "rate": 0.1, "name": "x"}
    return Checkpoint(
        server_round=server_round, tensors=tensors, state=state, virtual_clock_s=12.345678901, model_hash="abc"
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(3), keep=2)
    back = load_checkpoint(tmp_path)
    assert back is not None
    assert (back.server_round, back.virtual_clock_s, back.model_hash) == (3, 12.345678901, "abc")
    assert list(back.tensors) == ["a", "b"]
    for key, value in make(3).tensors.items():
        np.testing.assert_array_equal(back.tensors[key], value, strict=True)
    np.testing.assert_array_equal(back.state["momentum"], np.full(3, 3, np.float32))
    assert (back.state["count"], back.state["rate"], back.state["name"]) == (7, 0.1, "x")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for server_round in (1, 2, 3, 10):
        save_checkpoint(tmp_path, make(server_round), keep=2)
    assert [server_round for server_round, _ in find_checkpoints(tmp_path)] == [3, 10]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1), keep=2)
    path = save_checkpoint(tmp_path, make(2), keep=2) / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    back = load_checkpoint(tmp_path)
    assert back is not None
    assert back.server_round == 1


def test_none_without_any_and_an_error_when_all_are_damaged(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    (save_checkpoint(tmp_path, make(1), keep=2) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_checkpoint(tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {here!r})
from test_checkpoint import make
from fedpeft.core.errors import CheckpointError
from fedpeft.server.checkpoint import Checkpoint, save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, make(1), keep=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
big = Checkpoint(server_round=2, tensors={{"a": np.zeros(9999)}}, state={{}}, virtual_clock_s=0.0, model_hash="abc")
try:
    save_checkpoint(folder, big, keep=2)
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse the write just as a full disk does."""
    script = FULL_DISK.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "checkpoints")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checkpoint of round 2 cannot be written" in done.stdout
    assert "round 1 is kept" in done.stdout
    assert "resume=" in done.stdout
    assert [server_round for server_round, _ in find_checkpoints(tmp_path / "checkpoints")] == [1]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_numpy_scalars_are_kept_and_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    """A momentum of np.float32(0.1) comes back as float32: as a Python float it would be another number in float64."""
    state = {"rate": np.float32(0.1), "count": np.int64(3), "on": True}
    save_checkpoint(tmp_path, replace(make(1), state=state), keep=2)
    back = load_checkpoint(tmp_path)
    assert back is not None
    assert back.state == state
    assert [back.state[key].dtype.name for key in ("rate", "count")] == ["float32", "int64"]  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"state 'velocity' is of type dict: arrays, numbers and texts"):
        save_checkpoint(tmp_path, replace(make(2), state={"velocity": {"x": 1.0}}), keep=2)
    assert [server_round for server_round, _ in find_checkpoints(tmp_path)] == [1]
