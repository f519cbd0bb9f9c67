"""The table of device kinds says at which rank each of them trained, where ranks differ."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic_run import DEVICES

from fedpeft.report.costs import time
from fedpeft.report.reader import read_run


def set_ranks(run_dir: Path, *ranks: int | None) -> None:
    """Give the client lines these ranks by turns."""
    lines = [json.loads(line) for line in (run_dir / "clients.jsonl").read_text().splitlines()]
    lines = [{**line, "device": "rpi", "rank": ranks[i % len(ranks)]} for i, line in enumerate(lines)]
    (run_dir / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def column(run_dir: Path, name: str) -> list[str]:
    (table,) = time([read_run(run_dir)], ["demo"]).tables
    return [row[table.head.index(name)] for row in table.rows] if name in table.head else []


def test_each_kind_has_its_rank(run_dir: Path) -> None:
    """The synthetic run has ranks by device kind."""
    assert set(column(run_dir, "rank")) == {str(rank) for *_, rank in DEVICES.values()}


def test_ranks_that_changed_are_a_range(run_dir: Path) -> None:
    """HetLoRA prunes: a client of rank 8 may go on at 5."""
    set_ranks(run_dir, 8, 5, 6)
    assert column(run_dir, "rank") == ["5-8"]


def test_one_rank_for_all_needs_no_column(run_dir: Path) -> None:
    set_ranks(run_dir, 4)
    assert column(run_dir, "rank") == []
    set_ranks(run_dir, None)
    assert column(run_dir, "rank") == []
