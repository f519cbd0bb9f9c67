"""The pool: order, errors, dead workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fedpeft.core.errors import EngineError
from fedpeft.engines.pool import Done, ForkPool


def square(value: int) -> int:
    return value * value


def fail(value: int) -> int:
    raise ValueError(f"bad value {value}")


def die(value: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return value


@pytest.fixture
def pool() -> Iterator[ForkPool]:
    pool = ForkPool(2, {"square": square, "fail": fail, "die": die, "pid": lambda _: os.getpid()})
    yield pool
    pool.close()


def drain(pool: ForkPool) -> dict[int, Done]:
    done: dict[int, Done] = {}
    while pool.num_pending:
        done |= {one.task_id: one for one in pool.collect(timeout=10)}
    return done


def test_every_task_ends_once_with_its_value(pool: ForkPool) -> None:
    ids = {pool.submit("square", i): i for i in range(20)}
    done = drain(pool)
    assert {task: one.value for task, one in done.items()} == {task: i * i for task, i in ids.items()}


def test_work_runs_in_other_processes(pool: ForkPool) -> None:
    for _ in range(8):
        pool.submit("pid", None)
    assert {one.value for one in drain(pool).values()} <= set(pool.pids)
    assert os.getpid() not in pool.pids


def test_an_error_is_one_line_and_the_worker_lives_on(pool: ForkPool) -> None:
    before = pool.pids
    task = pool.submit("fail", 3)
    done = drain(pool)[task]
    assert (done.error, done.lost) == ("ValueError: bad value 3", False)
    assert pool.pids == before


def test_a_dead_worker_loses_its_task_alone_and_is_replaced(pool: ForkPool) -> None:
    before = set(pool.pids)
    killer = pool.submit("die", 0)
    others = [pool.submit("square", i) for i in range(6)]
    done = drain(pool)
    assert done[killer].lost
    assert "SIGKILL" in (done[killer].error or "")
    assert [done[task].value for task in others] == [0, 1, 4, 9, 16, 25]
    assert len(set(pool.pids) - before) == 1
    assert len(pool.pids) == 2


def test_a_worker_killed_while_idle_costs_nothing(pool: ForkPool) -> None:
    drain(pool)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    tasks = [pool.submit("square", i) for i in range(4)]
    assert [drain_one.value for _, drain_one in sorted(drain(pool).items())] == [0, 1, 4, 9]
    assert len(tasks) == 4


def test_a_pool_without_workers_is_refused() -> None:
    with pytest.raises(EngineError, match=r"engine\.workers"):
        ForkPool(0, {})
