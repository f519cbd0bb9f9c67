"""A command whose output nobody reads any more ends without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "fedpeft.cli.main"]


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    command = f"{' '.join(COMMAND)} devices list --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "["
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "unbuffered", "code"),
    [
        (["--help"], "", 1),
        (["--help"], "1", 1),
        (["devices", "list"], "", 1),
        (["devices", "bench", "--help"], "", 1),
        # argparse keeps an error of its own write to itself.
        (["devices", "bench", "--help"], "1", 0),
    ],
)
def test_a_closed_pipe_gets_no_traceback(words: list[str], unbuffered: str, code: int) -> None:
    """A short text is written when the command ends, or at once where Python does not buffer: both fail."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(
            [*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_standard_output_that_is_not_there_is_no_mistake() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} --help >&-"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
