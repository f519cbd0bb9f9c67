"""Memory of this process and its workers, and the allocator settings that keep it small."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

KERNEL_CACHES = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
"""torch keeps a compiled matrix product for each of the last 1,024 shapes.

Batches of every length fill that with half a gigabyte a worker. With 16, memory is flat and no step is slower.
"""


ARROW_POOL = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Arrow's own allocator maps a gigabyte ahead, untouched, which counts against a limit on private memory."""


def tame_memory() -> None:
    """Bound what torch's kernel caches and the allocators of C and Arrow hold; call it before any of them is used.

    What the user has set in the environment stays. C libraries other than glibc are left alone.
    """
    for name, value in {**KERNEL_CACHES, **ARROW_POOL}.items():
        os.environ.setdefault(name, value)
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    mallopt(_M_TRIM_THRESHOLD, 1 << 20)


def freeze_heap() -> None:
    """Move every living object out of the collector's sight before a fork.

    Otherwise its first collection in a worker would touch, and so copy, every page that holds Python objects. What an
    earlier run of a sweep froze is looked at again first, or its models would never be collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def tree_mb(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes in MB.

    Shared pages count once; resident memory where the kernel has no such figure.
    """
    return sum(_process_bytes(pid) for pid in pids) / 1e6


def _process_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _resident_bytes(pid)


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
