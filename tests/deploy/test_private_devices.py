"""Privacy on real devices: what they promise is kept where the server cannot look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_federation import Federation, federation, smaller, write_own_files

from fedpeft.privacy.ledger import LEDGER, Ledger, client_unit

DEVICES, ROUNDS = 2, 2
SETTINGS = {
    "example_level": ["privacy=example_level", "privacy.epsilon=8", "privacy.delta=1e-5"],
    "client_level": ["privacy=client_level", "privacy.noise_multiplier=1.0", "selection=poisson"],
}


@pytest.fixture
def overrides(toy: list[str]) -> list[str]:
    return [*smaller(toy, DEVICES), f"rounds={ROUNDS}", "evaluate.clients_every=0"]


def run(folder: Path, overrides: list[str], *fence: str) -> Iterator[Federation]:
    with federation(folder, write_own_files(overrides, folder), overrides) as made:
        made.start_server("report=false")
        for number in range(DEVICES):
            made.start_client(number, *fence)
        assert made.wait_until_done() == 0, made.everything()
        yield made


def test_a_device_that_demands_an_epsilon_trains_within_it(overrides: list[str], tmp_path: Path) -> None:
    [done] = run(tmp_path, [*overrides, *SETTINGS["example_level"]], "--require-epsilon", "8")
    promise = json.loads((done.run_dir / "privacy.json").read_text())
    assert (promise["epsilon"], promise["noise_multiplier"], promise["spent"]) == (8.0, None, None)
    assert "fitted by each device" in done.log("server")
    run_id = promise["terms"]["run_id"]
    for number in range(DEVICES):
        kept = tmp_path / f"device-{number}" / "runs" / run_id / f"client-{number:06d}" / LEDGER
        ledger = Ledger(kept, read_only=True)
        assert [entry.server_round for entry in ledger.entries] == list(range(1, ROUNDS + 1))
        assert 7 < ledger.epsilon(client_unit(number), 1e-5) <= 8
    # The server holds no ledger, and hears of no example.
    assert not list(done.run_dir.rglob(LEDGER))
    rows = [json.loads(line) for line in (done.run_dir / "clients.jsonl").read_text().splitlines()]
    assert {row["num_examples"] for row in rows} == {None}


@pytest.mark.slow
def test_a_server_noises_for_clients_that_trust_it(overrides: list[str], tmp_path: Path) -> None:
    [done] = run(tmp_path, [*overrides, *SETTINGS["client_level"]])
    assert len(Ledger(done.run_dir / LEDGER, read_only=True).entries) == ROUNDS
    assert json.loads((done.run_dir / "privacy.json").read_text())["spent"] > 0
