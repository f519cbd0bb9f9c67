"""Checkpoints: a folder for each kept round, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from fedpeft.core.errors import CheckpointError
from fedpeft.core.types import Tensors

_NAME = re.compile(r"round-(\d+)")
StateValue = np.ndarray | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a run stood after a round.

    Attributes:
        server_round: the round that was done.
        tensors: the global tensors.
        state: the strategy's own state.
        virtual_clock_s: simulated seconds since the run began.
        model_hash: sha256 of the base model.
        personal: clients that had something of their own under ``clients`` beside the checkpoints, counted on saving.
    """

    server_round: int
    tensors: Tensors
    state: Mapping[str, StateValue]
    virtual_clock_s: float
    model_hash: str
    personal: int = 0


def count_personal(folder: Path) -> int:
    """Return how many clients keep something of their own beside the checkpoints in ``folder``."""
    try:
        return len(os.listdir(folder / "clients"))
    except OSError:
        return 0


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``folder/round-NNNN`` atomically and remove all but the newest ``keep``.

    Raises:
        CheckpointError: the disk refused, or the state holds what cannot be kept; older checkpoints are untouched.
    """
    # numpy's own scalars are kept as arrays without axes: JSON would lose their type.
    arrays = {k: np.asarray(v) for k, v in checkpoint.state.items() if isinstance(v, (np.ndarray, np.generic))}
    scalars = {key: value for key, value in checkpoint.state.items() if key not in arrays}
    if odd := [key for key, value in scalars.items() if not isinstance(value, (bool, int, float, str))]:
        raise CheckpointError(
            f"the strategy's state {odd[0]!r} is of type {type(scalars[odd[0]]).__name__}: arrays, numbers and texts "
            "can be kept (change what its state() returns)"
        )
    meta = {
        "server_round": checkpoint.server_round,
        "virtual_clock_s": checkpoint.virtual_clock_s,
        "model_hash": checkpoint.model_hash,
        "personal": count_personal(folder),
        "state": scalars,
    }
    files = {
        "tensors.safetensors": save_safetensors(dict(checkpoint.tensors)),
        "state.safetensors": save_safetensors(arrays),
        "state.json": json.dumps(meta, indent=2).encode(),
    }
    files["manifest.json"] = json.dumps(
        {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, indent=2
    ).encode()
    target = folder / f"round-{checkpoint.server_round:04d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        _write_folder(temporary, target, files)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        done = find_checkpoints(folder)
        kept = f"round {done[-1][0]} is kept" if done else "there is no earlier one"
        raise CheckpointError(
            f"checkpoint of round {checkpoint.server_round} cannot be written to {folder}: {error.strerror or error}; "
            f"{kept} (free space, then continue with: fedpeft simulate resume={folder.parent})"
        ) from error
    # Newer ones were damaged, or this round would not have been done again; they must not crowd out sound ones.
    found = find_checkpoints(folder)
    newer = [path for server_round, path in found if server_round > checkpoint.server_round]
    sound = [path for server_round, path in found if server_round <= checkpoint.server_round]
    for old in (*newer, *sound[:-keep]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write_folder(temporary: Path, target: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, data in files.items():
        with open(temporary / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def find_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (round, folder) of every checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), folder / name) for name in os.listdir(folder) if (match := _NAME.fullmatch(name)))


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint under ``folder``, None when there is none at all.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
    """
    found = find_checkpoints(folder)
    problems = []
    for _, path in reversed(found):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, CheckpointError) as error:
            problems.append(f"{path.name}: {error}")
    if problems:
        raise CheckpointError(f"no usable checkpoint in {folder}: {'; '.join(problems)} (start the run anew)")
    return None


def _read(path: Path) -> Checkpoint:
    manifest = json.loads((path / "manifest.json").read_bytes())
    data = {name: (path / name).read_bytes() for name in ("tensors.safetensors", "state.safetensors", "state.json")}
    for name, content in data.items():
        if hashlib.sha256(content).hexdigest() != manifest.get(name):
            raise CheckpointError(f"{name} does not match its sha256")
    meta = json.loads(data["state.json"])
    return Checkpoint(
        server_round=int(meta["server_round"]),
        tensors={key: value for key, value in sorted(load_safetensors(data["tensors.safetensors"]).items())},
        state={**load_safetensors(data["state.safetensors"]), **meta["state"]},
        virtual_clock_s=float(meta["virtual_clock_s"]),
        model_hash=str(meta["model_hash"]),
        personal=int(meta.get("personal", 0)),
    )
