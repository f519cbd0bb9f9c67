"""A pool of forked workers.

They share their parent's memory by copy-on-write, die with it, and are replaced when they die.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from fedpeft.core.errors import EngineError

Handler = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A task that ended: ``value`` of one that returned, else ``error``; ``lost`` when its worker died."""

    task_id: int
    value: Any = None
    error: str | None = None
    lost: bool = False


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    task_id: int | None = None


class ForkPool:
    """Runs tasks on forked workers.

    A task is a handler's name and a payload that pickles; it runs on one worker at a time, in the order of submission.
    Handlers and all they refer to are inherited by the fork, never sent. A worker that dies is replaced by a new fork,
    and its task ends as ``lost``.

    Args:
        num_workers: processes to keep.
        handlers: what workers can do, by name. They run with the parent's memory as it was when the worker was forked.
    """

    def __init__(self, num_workers: int, handlers: Mapping[str, Handler]) -> None:
        if num_workers < 1:
            raise EngineError(f"a pool needs at least one worker, got {num_workers} (set engine.workers)")
        self._handlers = dict(handlers)
        self._context = mp.get_context("fork")
        # Workers hold the reading end. When the launcher dies, however it dies, the kernel closes the writing end and
        # every worker sees it.
        self._life_read, self._life_write = os.pipe()
        self._queue: deque[tuple[int, str, Any]] = deque()
        self._next_id = 0
        self._failed: deque[Done] = deque()
        self._workers: list[_Worker] = []
        for _ in range(num_workers):
            self._workers.append(self._fork())

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    @property
    def num_pending(self) -> int:
        """Tasks that have not ended."""
        return len(self._queue) + sum(worker.task_id is not None for worker in self._workers)

    def submit(self, handler: str, payload: Any) -> int:
        """Queue a task and return its number."""
        self._next_id += 1
        self._queue.append((self._next_id, handler, payload))
        self._dispatch()
        return self._next_id

    def collect(self, timeout: float | None) -> list[Done]:
        """Wait until a task ends, at most ``timeout`` seconds, and return those that have."""
        if not self.num_pending:
            return []
        ready = set(wait([w.connection for w in self._workers if w.task_id is not None], timeout))
        done = [self._receive(i) for i, worker in enumerate(self._workers) if worker.connection in ready]
        self._dispatch()
        return done

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []
        os.close(self._life_write)
        os.close(self._life_read)

    def _fork(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=self._work, args=(ours, theirs), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _dispatch(self) -> None:
        for i, worker in enumerate(self._workers):
            if worker.task_id is None and self._queue:
                task = self._queue.popleft()
                try:
                    worker.connection.send(task)
                except (BrokenPipeError, ConnectionResetError):
                    # It died idle: nothing is lost but the worker.
                    self._replace(i)
                    self._workers[i].connection.send(task)
                self._workers[i].task_id = task[0]

    def _receive(self, index: int) -> Done:
        worker = self._workers[index]
        task_id = worker.task_id
        assert task_id is not None, "only busy workers are waited for"
        try:
            done: Done = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            code = self._replace(index)
            return Done(task_id=task_id, error=f"the worker died ({_death(code)})", lost=True)
        worker.task_id = None
        return done

    def _replace(self, index: int) -> int | None:
        """Fork a new worker in the place of a dead one; return the dead one's exit code."""
        dead = self._workers[index]
        dead.process.join()
        dead.connection.close()
        self._workers[index] = self._fork()
        return dead.process.exitcode

    def _work(self, parent_end: Connection, connection: Connection) -> None:
        """Life of a worker."""
        # Ctrl-C reaches the whole process group; the launcher alone decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        parent_end.close()
        os.close(self._life_write)
        for sibling in self._workers:
            # Inherited ends of older siblings would keep their pipes open after the launcher's death.
            sibling.connection.close()
        threading.Thread(target=_die_with_launcher, args=(self._life_read,), daemon=True).start()
        while True:
            try:
                task_id, handler, payload = connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            connection.send(_run(self._handlers[handler], task_id, payload))


def _run(handler: Handler, task_id: int, payload: Any) -> Done:
    try:
        return Done(task_id=task_id, value=handler(payload))
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        return Done(task_id=task_id, error=text or type(error).__name__)


def _die_with_launcher(life_read: int) -> None:
    os.read(life_read, 1)
    os._exit(0)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
