from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpeft.report import series
from fedpeft.report.reader import RunView, read_run


def make(tmp_path: Path, **files: list[dict[str, Any]] | dict[str, Any]) -> RunView:
    for name, content in files.items():
        rows = content if isinstance(content, list) else [content]
        suffix = "jsonl" if isinstance(content, list) else "json"
        (tmp_path / f"{name}.{suffix}").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return read_run(tmp_path)


def test_bytes_axis_adds_both_ways(tmp_path: Path) -> None:
    """Round 1 sends 10 down and 5 up, round 2 sends 10 down: 0, 15, 25. The client evaluation's bytes are apart."""
    rounds: list[dict[str, Any]] = [
        {"round": 0, "eval": {"accuracy": 0.5}},
        {"round": 1, "bytes_down": 10, "bytes_up": 5, "eval_bytes_down": 99, "eval": {"accuracy": 0.6}},
        {"round": 2, "bytes_down": 10, "bytes_up": None, "eval": {"accuracy": 0.7}},
    ]
    assert series.points(make(tmp_path, rounds=rounds), "accuracy", "bytes") == ([0, 15, 25], [0.5, 0.6, 0.7])


def test_rounds_without_the_metric_or_the_place_are_skipped(tmp_path: Path) -> None:
    rounds: list[dict[str, Any]] = [
        {"round": 1, "virtual_clock_s": 3.0, "eval": {}},
        {"round": 2, "virtual_clock_s": None, "eval": {"accuracy": 0.6}},
        {"round": 3, "virtual_clock_s": 9.0, "eval": {"accuracy": 0.7}},
    ]
    assert series.points(make(tmp_path, rounds=rounds), "accuracy", "clock") == ([9.0], [0.7])


def test_the_summary_stands_in_for_a_missing_round_zero(tmp_path: Path) -> None:
    view = make(tmp_path, rounds=[{"round": 1, "eval": {"accuracy": 0.6}}], summary={"initial": {"accuracy": 0.5}})
    assert series.points(view, "accuracy") == ([0.0, 1.0], [0.5, 0.6])


def test_spread_of_eleven_clients(tmp_path: Path) -> None:
    """Accuracies 0.0, 0.1 .. 1.0: mean 0.5; the worst tenth is 2 of 11 (1.1 up), mean 0.05; quartiles 0.25, 0.75."""
    rows = [{"round": 2, "client_id": i, "accuracy": i / 10} for i in range(11)]
    found = series.spread(make(tmp_path, rounds=[{"round": 2}], evaluations=rows))
    assert found.rounds == [2]
    assert [round(x[0], 9) for x in (found.mean, found.worst, found.lower, found.upper)] == [0.5, 0.05, 0.25, 0.75]


def test_spread_falls_back_on_what_the_server_recorded(tmp_path: Path) -> None:
    rounds: list[dict[str, Any]] = [
        {"round": 1, "eval": {"client_accuracy_mean": 0.6, "client_accuracy_worst_decile": 0.4}},
        {"round": 2, "eval": {}},
    ]
    found = series.spread(make(tmp_path, rounds=rounds))
    assert (found.rounds, found.mean, found.worst, found.lower) == ([1], [0.6], [0.4], [])


def test_device_seconds_are_medians_of_known_lines(tmp_path: Path) -> None:
    """Downloads 1, 2, 9: median 2. The lost client's zeros do not count."""
    clients = [
        {"round": 1, "client_id": i, "device": "phone", "virtual_s": {"down": d, "compute": 10.0 * d, "up": 0.5}}
        for i, d in enumerate((9.0, 1.0, 2.0))
    ]
    lost = {
        "round": 1,
        "client_id": 3,
        "device": "phone",
        "virtual_s": {"down": 0.0, "compute": 0.0, "up": 0.0},
        "outcome": "lost",
    }
    view = make(tmp_path, rounds=[{"round": 1}], clients=[*clients, lost])
    assert series.seconds(series.by_device(view)["phone"]) == (2.0, 20.0, 0.5)


def test_drops_are_counted_by_short_reason(tmp_path: Path) -> None:
    """Five of a cohort of 9 are dropped, so 4 are used."""
    row = {"round": 1, "cohort_size": 9, "dropped": {"late": 2, "rejected:finite": 2, "rejected:norm": 1}}
    view = make(tmp_path, rounds=[row])
    assert series.drop_reasons([view]) == ["rejected", "late"]
    assert series.dropped_for(view.rounds[0], "rejected") == 3
    assert series.accepted(view.rounds[0]) == 4


def test_bins_keep_every_round_once_and_in_order(tmp_path: Path) -> None:
    view = make(tmp_path, rounds=[{"round": i, "wall_s": i} for i in range(1, 1001)])
    bins = series.binned(view.rounds, most=48)
    assert len(bins) <= 48
    assert [row.round for one in bins for row in one.rounds] == list(range(1, 1001))
    assert series.mean_of(bins[:1], lambda row: row.wall_s) == [11.0]


def test_flatten() -> None:
    assert series.flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": {}}) == {
        "a.b.c": "1",
        "a.d": "null",
        "e": "[1, 2]",
        "f": "{}",
    }
