"""Fixtures that every part shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Tests are imported by path and not as a package; the toy model beside them is found this way, and so are the programs
# below ``benchmarks``, before a package of that name elsewhere.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a small federation on a random model; see ``tests/toy.py``."""
    import toy as maker

    folder = tmp_path_factory.mktemp("toy")
    return maker.overrides(maker.write_model(folder / "model"), maker.write_data(folder / "data"))


def _configs(toy: list[str], folder: Path) -> Callable[..., dict[str, Any]]:
    from fedpeft import config as cfg
    from fedpeft.cli.launch import new_config

    def make(*more: str, name: str = "run") -> dict[str, Any]:
        return new_config({**cfg.compose([*toy, *more]), "run_dir": str(folder / name)})

    return make


@pytest.fixture
def toy_config(toy: list[str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function from further overrides to the plain config of a new toy run in ``tmp_path / name``."""
    return _configs(toy, tmp_path)


@pytest.fixture(scope="module")
def toy_module(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Return what ``toy_config`` does, for runs that several tests of a file look at."""
    return _configs(toy, tmp_path_factory.mktemp("module"))
