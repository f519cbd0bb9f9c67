"""A device behind a link of 0.25 Mbit/s, and two beside it that have a fast one.

    python -m pytest -m slow tests/deploy/test_slow_link.py -s

prints what each client took; some five minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy as maker
from real_federation import Federation, federation, smaller, write_own_files

from benchmarks.device_validation.link import Relay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LINK_MBPS = 0.25
SLOW, FAST = 0, (1, 2)
TWO_MB = 2_000_000


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """A federation whose adapter is two tensors of a mebibyte each."""
    model = maker.write_model(tmp_path / "model", hidden=512, layers=1)
    kept = smaller(maker.overrides(model, maker.write_data(tmp_path / "data")))
    kept = [one for one in kept if not one.startswith(("method.", "rounds", "client.local_steps"))]
    return [*kept, "method.rank=512", "method.target_modules=[query]", "client.local_steps=1"]


@pytest.fixture
def relay() -> Iterator[list[Relay]]:
    made: list[Relay] = []
    yield made
    for one in made:
        one.close()


def start(made: Federation, relays: list[Relay]) -> None:
    """Start the server, two devices beside it, and one behind the slow link."""
    made.start_server("report=false")
    relays.append(Relay("127.0.0.1", made.port))
    relays[0].limit(down_mbps=LINK_MBPS, up_mbps=LINK_MBPS, rtt_ms=60.0)
    for number in FAST:
        made.start_client(number)
    near = made.port
    made.port = relays[0].port
    made.start_client(SLOW)
    made.port = near


def rows(made: Federation) -> dict[tuple[int, int], dict[str, Any]]:
    lines = [json.loads(line) for line in (made.run_dir / "clients.jsonl").read_text().splitlines()]
    for row in lines:
        print({key: row[key] for key in ("round", "client_id", "outcome", "bytes_up", "virtual_s")})
    return {(row["round"], row["client_id"]): row for row in lines}


def seconds(row: dict[str, Any]) -> float:
    return float(sum(row["virtual_s"].values()))


def test_two_megabytes_arrive_and_nobody_else_waits(overrides: list[str], relay: list[Relay], tmp_path: Path) -> None:
    config = [*overrides, "rounds=1"]
    with federation(tmp_path, write_own_files(config, tmp_path), config) as made:
        start(made, relay)
        assert made.wait_until_done(480) == 0, made.everything()
        found = rows(made)
    slow = found[1, SLOW]
    assert slow["outcome"] == "ok", slow
    assert min(slow["bytes_down"], slow["bytes_up"]) > TWO_MB
    # What the bytes take at that rate is the least there can be; of the way down half is zeros, which go once.
    assert slow["virtual_s"]["up"] > 8 * TWO_MB / (LINK_MBPS * 1e6)
    assert slow["virtual_s"]["down"] > 8 * TWO_MB / 2 / (LINK_MBPS * 1e6)
    for number in FAST:
        assert found[1, number]["outcome"] == "ok"
        assert seconds(found[1, number]) < 30, "held up by the slow one"


def test_a_deadline_ends_the_round_without_the_slow_one(
    overrides: list[str], relay: list[Relay], tmp_path: Path
) -> None:
    config = [*overrides, "rounds=2", "round.deadline_s=30"]
    with federation(tmp_path, write_own_files(config, tmp_path), config) as made:
        start(made, relay)
        assert made.wait_until_done(480) == 0, made.everything()
        found = rows(made)
    for number in (1, 2):
        assert found[number, SLOW]["outcome"] == "late"
        assert "round.deadline_s" in found[number, SLOW]["detail"]
        assert [found[number, fast]["outcome"] for fast in FAST] == ["ok", "ok"]
    rounds = [json.loads(line) for line in (made.run_dir / "rounds.jsonl").read_text().splitlines()]
    for row in rounds:
        print({key: row[key] for key in ("round", "num_replies", "dropped", "wall_s")})
        assert row["num_replies"] == len(FAST)
        assert 30 <= row["wall_s"] < 45
