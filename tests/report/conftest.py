"""One synthetic run directory for the whole part; tests that change it take a copy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

# Tests are imported by path and not as a package; the generator beside them is found this way.
sys.path.insert(0, str(Path(__file__).parent))

from synthetic_run import Shape, write_run

from fedpeft.report.page import render
from fedpeft.report.reader import read_run

LONG_NAME = "a-run-with-a-name-that-is-a-good-deal-longer-than-a-phone-is-wide-and-has-no-spaces"


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nobody may change."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo", Shape(seed=1, epsilon=True))


@pytest.fixture
def run_dir(shared_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed at will."""
    return Path(shutil.copytree(shared_run, tmp_path / "demo"))


@pytest.fixture(scope="session")
def page_of_one(shared_run: Path) -> str:
    """The page of the finished run."""
    return render([read_run(shared_run)])


@pytest.fixture(scope="session")
def page_of_four(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of four runs: two share a name, one has a very long one, their configs and lengths differ."""
    folder = tmp_path_factory.mktemp("four")
    names = ("same", "same", LONG_NAME, "fourth")
    runs = [write_run(folder / f"r{i}", Shape(name=name, seed=i, num_rounds=2 + i)) for i, name in enumerate(names)]
    return render([read_run(run) for run in runs])
