"""Commands typed in an empty folder, and what they say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.cli.main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory; the app sets sys.argv for Hydra."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


@pytest.fixture
def said(here: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Return a function from the words of a command to its exit code and the lines on stderr."""

    def run(*words: str) -> tuple[int, list[str]]:
        capfd.readouterr()
        code = main(words)
        return code, capfd.readouterr().err.splitlines()

    return run
