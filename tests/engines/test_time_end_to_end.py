"""Time passes as the devices say: jitter, presence, over-selection, asynchronous rounds, selections that learn."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_runs import (
    assert_alike,
    checkpoint,
    fleet,
    killed,
    resume,
    rows,
    run,
    seconds,
    summary,
    witnessed,
    write_profile,
)

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.luck import luck_of
from fedpeft.device_profiles.presets import load_profile

Make = Callable[..., dict[str, Any]]
ROUNDED = 1e-6
"""Tables are rounded to microseconds."""


# -- jitter ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(toy_module: Make) -> Path:
    """A run in which everything takes just as long as the profiles say."""
    return run(toy_module("devices.jitter=false", name="expected"))


def test_without_jitter_a_transfer_takes_what_the_profile_says(expected: Path) -> None:
    """rtt + 8 bytes / (payload_efficiency (1 - loss) rate), each way, in each of three rounds."""
    clients = rows(expected, "clients.jsonl")
    assert len(clients) == 3 * 4
    for row in clients:
        network = load_profile(row["device"]).network
        for way, rate in (("down", network.down_mbps), ("up", network.up_mbps)):
            payload = 1e6 * rate * network.payload_efficiency * (1 - network.loss)
            predicted = network.rtt_ms / 1e3 + 8 * row[f"bytes_{way}"] / payload
            assert row["virtual_s"][way] == pytest.approx(predicted, abs=ROUNDED)


def test_jitter_is_luck_on_the_expected_seconds_whatever_the_workers_and_a_crash(
    toy_module: Make, expected: Path, tmp_path: Path
) -> None:
    """One run with two workers, one with a single one that is killed in round 2 and resumed: alike, bit for bit.

    Each leg of each exchange is the expected one times its luck, so that rounds differ.
    """
    whole = run(toy_module(*witnessed(), name="whole"))
    config = toy_module(*witnessed(tmp_path / "notes", dies_in=2), "engine.workers=1", name="resumed")
    killed(config)
    assert resume(config) == 0
    assert_alike(whole, Path(config["run_dir"]))
    pairs = list(zip(rows(whole, "clients.jsonl"), rows(expected, "clients.jsonl"), strict=True))
    for row, plain in pairs:
        luck = luck_of(load_profile(row["device"]), 0, row["client_id"], row["round"], "train")
        for leg in ("down", "compute", "up"):
            wanted = plain["virtual_s"][leg] * getattr(luck, leg)
            assert row["virtual_s"][leg] == pytest.approx(wanted, abs=3 * ROUNDED)
    spread = {row["round"]: row["virtual_s"]["down"] / plain["virtual_s"]["down"] for row, plain in pairs}
    assert len(set(spread.values())) == len(spread) == 3


# -- presence ----------------------------------------------------------------------------------------------------------


def test_clients_come_and_go_by_a_trace(toy_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there at 0; clients 0 and 1 come at 100, client 0 goes 10 ms later, before its round trips are over.

    The server waits the deadline of 50 s out for it, until 150. Client 1 went at 149, and until 300, when the others
    come, there is nobody: round 2 begins then.
    """
    monkeypatch.chdir(tmp_path)
    spans = ["0,100,100.01", "1,100,149", *(f"{client},300,9000" for client in range(2, 6))]
    Path("trace.csv").write_text("\n".join(["client_id,start_s,end_s", *spans]) + "\n")
    write_profile(Path("guest.yaml"), availability={"model": "trace", "trace": "trace.csv", "dropout_per_round": 0.0})
    config = toy_config("devices.availability=true", "cohort_size=6", "round.deadline_s=50", "rounds=2")
    run_dir = run(config | {"fleet": fleet(guest=1.0)})
    first, second = rows(run_dir, "rounds.jsonl")
    assert (first["cohort_size"], first["num_replies"], first["dropped"]) == (2, 1, {"left": 1})
    assert first["virtual_clock_s"] == 150.0
    assert (second["cohort_size"], second["num_replies"], second["dropped"]) == (4, 4, {})
    assert 300 < second["virtual_clock_s"] < 301
    gone, stayed = rows(run_dir, "clients.jsonl")[:2]
    assert (gone["client_id"], gone["outcome"], gone["bytes_up"]) == (0, "left", 0)
    assert seconds(gone) == pytest.approx(0.01, abs=ROUNDED)
    assert (stayed["client_id"], stayed["outcome"]) == (1, "ok")
    assert [row["client_id"] for row in rows(run_dir, "clients.jsonl")[2:]] == [2, 3, 4, 5]


# -- over-selection ----------------------------------------------------------------------------------------------------


def test_over_selection_asks_more_and_ends_with_the_fastest(toy_config: Make) -> None:
    """4 x 1.25 = 5 are asked; the round takes as long as the fourth of them, who is slower is surplus."""
    run_dir = run(toy_config("round.over_selection=1.25", "rounds=2"))
    clients, rounds = rows(run_dir, "clients.jsonl"), rows(run_dir, "rounds.jsonl")
    assert len(rounds) == 2
    for row in rounds:
        asked = sorted((one for one in clients if one["round"] == row["round"]), key=seconds)
        assert (row["cohort_size"], row["num_replies"], row["dropped"]) == (5, 4, {"surplus": 1})
        assert [one["outcome"] for one in asked] == ["ok"] * 4 + ["surplus"]
        assert row["virtual_s"] == pytest.approx(seconds(asked[3]), abs=3 * ROUNDED)
        assert asked[4]["bytes_up"] > 0, "its reply was sent all the same"


# -- asynchronous rounds -----------------------------------------------------------------------------------------------

ASYNC = ("round.buffer_size=2", "cohort_size=3", "round.max_staleness=1", "rounds=6")


def timetable(clients: list[dict[str, Any]], rounds: int, size: int, places: int) -> list[tuple[float, dict[int, int]]]:
    """Return for each round when it is full, and by client the round whose model its reply started from.

    Written anew from the rule alone: places are taken in the order of client ids, first in the round's first moment and
    then whenever a place becomes free; the round is full when ``size`` replies have landed.
    """
    now_s, flying, found = 0.0, [], []
    for server_round in range(1, rounds + 1):
        waiting = [row for row in clients if row["round"] == server_round]
        busy = {client for _, client, _ in flying}
        assert not busy & {row["client_id"] for row in waiting}, "a client was asked while it was at work"
        landed: dict[int, int] = {}
        while len(landed) < size:
            while waiting and len(flying) < places:
                row = waiting.pop(0)
                heapq.heappush(flying, (now_s + seconds(row), row["client_id"], server_round))
            now_s, client, begun = heapq.heappop(flying)
            landed[client] = begun
            if waiting:
                row = waiting.pop(0)
                heapq.heappush(flying, (now_s + seconds(row), row["client_id"], server_round))
        for row in waiting:
            heapq.heappush(flying, (now_s + seconds(row), row["client_id"], server_round))
        found.append((now_s, landed))
    return found


def test_asynchronous_rounds_follow_their_timetable_and_discount_what_is_old(toy_config: Make) -> None:
    """The record's clock, and whom each round was made of at which weight, n (1 + age)^-0.5, against a timetable."""
    run_dir = run(toy_config(*ASYNC, *witnessed()))
    rounds, clients = rows(run_dir, "rounds.jsonl"), rows(run_dir, "clients.jsonl")
    planned = timetable(clients, rounds=6, size=2, places=3)
    examples = {row["client_id"]: row["num_examples"] for row in clients}
    ages = []
    for row, (full_s, landed) in zip(rounds, planned, strict=True):
        assert row["virtual_clock_s"] == pytest.approx(full_s, abs=20 * ROUNDED)
        age = {client: row["round"] - begun for client, begun in landed.items()}
        ages += age.values()
        weights = {client: examples[client] * (1 + age[client]) ** -0.5 for client in landed if age[client] <= 1}
        told = {one["client_id"]: one["weight"] for one in row["strategy"]["told"]}
        assert told == pytest.approx(weights)
        stale = len(landed) - len(weights)
        assert row["dropped"] == ({"rejected:stale": stale} if stale else {})
    times = [row["virtual_clock_s"] for row in rounds]
    assert times == sorted(times)
    assert min(row["virtual_s"] for row in rounds) >= 0
    assert {0, 1, 2} <= set(ages), "without fresh, stale and dropped replies nothing is proved"


def test_asynchronous_rounds_that_evaluate_on_clients_have_no_negative_seconds(toy_config: Make) -> None:
    run_dir = run(toy_config("round.buffer_size=2", "rounds=2", "evaluate.clients_every=1"))
    for row in rows(run_dir, "rounds.jsonl"):
        assert row["virtual_s"] > 0
        assert row["eval_virtual_s"] > 0
    parts = [row["virtual_s"] + row["eval_virtual_s"] for row in rows(run_dir, "rounds.jsonl")]
    assert rows(run_dir, "rounds.jsonl")[-1]["virtual_clock_s"] == pytest.approx(sum(parts), abs=5 * ROUNDED)


def test_time_passes_in_asynchronous_rounds_that_nobody_answers(toy_config: Make) -> None:
    """A deadline of 10 ms, which no round trip makes: each round takes it."""
    run_dir = run(toy_config("round.buffer_size=2", "rounds=2", "round.deadline_s=0.01"), code=1)
    rounds = rows(run_dir, "rounds.jsonl")
    assert len(rounds) == 2
    for row in rounds:
        assert row["num_replies"] == 0
        assert row["virtual_s"] == pytest.approx(0.01)


def test_work_in_flight_survives_kill_9(toy_module: Make, tmp_path: Path) -> None:
    whole = run(toy_module(*ASYNC, *witnessed(), name="async"))
    config = toy_module(*ASYNC, *witnessed(tmp_path / "notes", dies_in=4), name="async-resumed")
    killed(config)
    assert [key for key in checkpoint(Path(config["run_dir"])).state if key.startswith("buffer.")] != ["buffer.flights"]
    assert resume(config) == 0
    assert_alike(whole, Path(config["run_dir"]))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy=flora"], "strategy FLoRA needs all updates of a round to start from one model"),
        (
            ["strategy=scaffold", "client.optimizer=sgd"],
            "SCAFFOLD needs all updates of a round to start from one model",
        ),
        (["+method.ranks={phone_low: 1}"], "round.buffer_size needs one rank for all clients"),
        (["round.over_selection=1.5"], "round.over_selection means nothing with round.buffer_size"),
        (["round.min_replies=3"], "round.min_replies must be at most round.buffer_size (2), got 3"),
        (["round.buffer_size=5"], "round.buffer_size must be at most cohort_size (4), got 5"),
    ],
)
def test_what_cannot_bear_asynchronous_rounds_is_refused(toy_config: Make, overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        cfg.check(toy_config("round.buffer_size=2", *overrides))
    assert line in str(error.value)


# -- selections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (["selection=oort", "selection.explore=0.5", "selection.explore_least=0"], "selection.utility"),
        (["selection=tifl", "selection.tiers=3", "selection.interval=1"], "selection."),
        (["selection=energy_aware", "fleet=phones"], "selection."),
        (["selection=poisson"], None),
    ],
    ids=["oort", "tifl", "energy_aware", "poisson"],
)
def test_selections_run_and_go_on_as_they_were(
    toy_module: Make, tmp_path: Path, selection: list[str], kept: str | None, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    common = [*selection, "cohort_size=2", "rounds=4"]
    whole = run(toy_module(*common, *witnessed(), name=name))
    config = toy_module(*common, *witnessed(tmp_path / "notes", dies_in=3), name=f"{name}-resumed")
    killed(config)
    assert resume(config) == 0
    assert_alike(whole, Path(config["run_dir"]))
    assert summary(whole)["status"] == "finished"
    assert len(rows(whole, "rounds.jsonl")) == 4
    found = [key for key in checkpoint(whole).state if key.startswith("selection.")]
    assert any(key.startswith(kept) for key in found) if kept else not found
