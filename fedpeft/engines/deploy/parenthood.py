"""Processes that end with their parent, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.2


def die_with(parent_pid: int) -> None:
    """Have this process killed when its parent dies; call it first thing in a new process.

    On Linux the kernel does it. Elsewhere a thread looks now and then.

    Args:
        parent_pid: the parent, which may be gone already.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(1)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_LOOK_S)
    os._exit(1)


def death(status: int) -> str | None:
    """Return the name of the signal that killed a process, None if it ended by itself.

    Args:
        status: as ``os.waitpid`` returns it.
    """
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
