"""The heap before a fork: out of the collector's sight, but not for ever."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from fedpeft.engines.memory import freeze_heap


class Loop:
    """An object that only the collector can free: it refers to itself, as models with hooks do."""

    def __init__(self) -> None:
        self.itself = self


def test_what_an_earlier_run_froze_is_collected_by_the_next() -> None:
    model = Loop()
    there = weakref.ref(model)
    try:
        freeze_heap()
        assert gc.get_freeze_count() > 0
        del model
        gc.collect()
        assert there() is not None, "frozen, the collector does not see it"
        freeze_heap()
        assert there() is None
    finally:
        gc.unfreeze()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is mapped")
def test_a_device_maps_no_memory_that_it_does_not_use() -> None:
    """Its operator's limit counts what is mapped; Arrow's own allocator would map a gigabyte at the first table."""
    code = """
from pathlib import Path
from fedpeft.engines.memory import tame_memory
tame_memory()
import pyarrow
pyarrow.table({"text": ["a"] * 1000})
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmData"].split()[0]) // 1024)
"""
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 300
