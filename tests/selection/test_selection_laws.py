"""Laws that every selection obeys. Selections are found by glob: a new file is tested by these without a word."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import defined

from fedpeft import config as cfg
from fedpeft.core.paths import conf_dir
from fedpeft.core.seeds import rng
from fedpeft.core.types import ClientInfo, Cost
from fedpeft.selection import base
from fedpeft.selection.base import Moment, Outcome, Selection
from fedpeft.selection.crowd import Crowd, keep
from fedpeft.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

N = 60
DEVICES = ("slow", "middle", "fast")
CODES = np.arange(N) * 7 % 3
EXAMPLES = 10 + np.arange(N) * 13 % 50
CROWD = Crowd(EXAMPLES, CODES, DEVICES, node_ids=5000 - np.arange(N))
CLIENTS = list(CROWD)
ANY_SIZE: dict[str, str] = {"Poisson": "each client is asked by a coin of its own, so sizes vary around the cohort's"}
"""Selections whose cohorts are not of the size that was asked for, and why."""


KINDS: list[type[Selection]] = defined(base, Selection)
every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def new(kind: type[Selection]) -> Selection:
    """Return a selection as its YAML makes it."""
    import yaml

    for path in sorted((conf_dir() / "selection").glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        if node["_target_"] == f"{kind.__module__}.{kind.__qualname__}":
            found: Selection = cfg.build(
                {key: N if value == "${num_clients}" else value for key, value in node.items()}
            )
            return found
    raise AssertionError(f"{kind.__name__} has no YAML")


def cost(client: ClientInfo) -> Cost:
    seconds = {"slow": 90.0, "middle": 30.0, "fast": 10.0}[client.device]
    return Cost(down_s=1.0, compute_s=seconds, up_s=2.0, energy_j=5 * seconds)


def moment(server_round: int, expected: Callable[[ClientInfo], Cost] | None = cost) -> Moment:
    return Moment(server_round=server_round, now_s=100.0 * server_round, expected=expected)


def outcomes(cohort: Sequence[ClientInfo], server_round: int) -> list[Outcome]:
    """Return how a cohort fared: some are late or lost, some tell no loss."""
    found = []
    for client in cohort:
        luck = (client.client_id + server_round) % 7
        outcome = {5: "late", 6: "lost"}.get(luck, "ok")
        loss = None if luck in (4, 5, 6) else 1 / (1 + server_round) + client.client_id / N
        spent = Cost(down_s=0.0, compute_s=0.0, up_s=0.0) if outcome == "lost" else cost(client)
        found.append(Outcome(client=client, outcome=outcome, cost=spent, loss=loss, num_steps=4))
    return found


def present(clients: Sequence[ClientInfo], server_round: int) -> Sequence[ClientInfo]:
    """Return who is available: two of three, others in each round."""
    return keep(clients, (np.arange(N) + server_round) % 3 > 0)


def play(
    selection: Selection,
    rounds: range,
    clients: Sequence[ClientInfo] = CLIENTS,
    size: int = 8,
    expected: Callable[[ClientInfo], Cost] | None = cost,
) -> list[list[ClientInfo]]:
    cohorts = []
    for r in rounds:
        cohort = selection.select(present(clients, r), size, moment(r, expected), rng(0, "cohort", r))
        selection.observe(r, outcomes(cohort, r))
        cohorts.append(cohort)
    return cohorts


def ids(cohort: Sequence[ClientInfo]) -> list[int]:
    return [client.client_id for client in cohort]


def plain(state: dict[str, Any]) -> dict[str, Any]:
    return {k: (v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else v for k, v in state.items()}


def test_selections_are_found() -> None:
    assert {kind.__name__ for kind in KINDS} >= {"Uniform", "Poisson", "Oort", "TiFL", "EnergyAware"}


@every
@pytest.mark.parametrize("clients", [CLIENTS, CROWD], ids=["list", "crowd"])
@pytest.mark.parametrize("expected", [cost, None], ids=["predicted", "unknown"])
@pytest.mark.parametrize("size", [1, 8, 40, 99])
def test_different_available_clients_by_id_and_as_many_as_asked(
    kind: type[Selection], clients: Sequence[ClientInfo], expected: Callable[[ClientInfo], Cost] | None, size: int
) -> None:
    for r, cohort in enumerate(play(new(kind), range(1, 13), clients, size, expected), start=1):
        there = present(CLIENTS, r)
        assert isinstance(cohort, list)
        assert ids(cohort) == sorted(set(ids(cohort)))
        assert all(client in there for client in cohort)
        if kind.__name__ not in ANY_SIZE:
            assert len(cohort) == min(size, len(there))


@every
def test_same_generator_and_history_same_cohort(kind: type[Selection]) -> None:
    """Asking twice changes nothing: a selection learns from ``observe`` alone."""
    first, second = new(kind), new(kind)
    for r in range(1, 9):
        there = present(CLIENTS, r)
        before = plain(first.state())
        for size in (3, 20):
            first.select(there, size, moment(r), rng(9, "evaluation", r))
        cohort = first.select(there, 8, moment(r), rng(0, "cohort", r))
        assert plain(first.state()) == before
        assert ids(cohort) == ids(second.select(there, 8, moment(r), rng(0, "cohort", r)))
        for selection in (first, second):
            selection.observe(r, outcomes(cohort, r))
        assert plain(first.state()) == plain(second.state())


@every
def test_a_crowd_is_chosen_from_like_a_list(kind: type[Selection]) -> None:
    assert [ids(c) for c in play(new(kind), range(1, 9), CROWD)] == [ids(c) for c in play(new(kind), range(1, 9))]


@every
def test_rounds_differ(kind: type[Selection]) -> None:
    selection = new(kind)
    cohorts = {tuple(ids(selection.select(CLIENTS, 8, moment(1), rng(0, "cohort", r)))) for r in range(20)}
    assert len(cohorts) > 5


@every
def test_state_comes_back_bit_by_bit_through_a_checkpoint(kind: type[Selection], tmp_path: Path) -> None:
    whole = play(new(kind), range(1, 13))
    first = new(kind)
    play(first, range(1, 6))
    kept = Checkpoint(server_round=5, tensors={}, state=first.state(), virtual_clock_s=0.0, model_hash="")
    save_checkpoint(tmp_path, kept, keep=1)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    second = new(kind)
    second.load_state(loaded.state)
    assert plain(second.state()) == plain(first.state())
    assert [ids(c) for c in play(second, range(6, 13))] == [ids(c) for c in whole[5:]]


@every
def test_state_is_a_copy_and_small(kind: type[Selection]) -> None:
    """At most five numbers for each client that was asked, whoever else there is."""
    selection = new(kind)
    seen = {client.client_id for cohort in play(selection, range(1, 4)) for client in cohort}
    before = plain(selection.state())
    state = selection.state()
    assert sum(value.size for value in state.values() if isinstance(value, np.ndarray)) <= 5 * len(seen) + 50
    for value in state.values():
        if isinstance(value, np.ndarray):
            value.fill(0)
    assert plain(selection.state()) == before


@every
def test_arguments_are_not_changed(kind: type[Selection]) -> None:
    selection = new(kind)
    for r in range(1, 5):
        clients, when = list(present(CLIENTS, r)), moment(r)
        cohort = selection.select(clients, 8, when, rng(0, "cohort", r))
        assert clients == present(CLIENTS, r)
        told = outcomes(cohort, r)
        before = copy.copy(told)
        selection.observe(r, told)
        assert told == before


@every
def test_nobody_there_is_an_empty_cohort(kind: type[Selection]) -> None:
    selection = new(kind)
    for _ in range(2):
        assert selection.select([], 8, moment(1), rng(0, "cohort", 1)) == []
        assert selection.select(CROWD.where(np.zeros(N, dtype=bool)), 8, moment(1), rng(0, "cohort", 1)) == []
        selection.observe(1, [])
        play(selection, range(1, 4))


@every
def test_odd_outcomes_are_borne(kind: type[Selection]) -> None:
    """Nobody tells a loss, nothing has a cost, losses are not finite or huge, a round is observed that nobody chose."""
    nothing = Cost(down_s=0.0, compute_s=0.0, up_s=0.0)
    for loss in (None, math.nan, math.inf, 1e300, 0.0, -3.0):
        selection = new(kind)
        for r in range(1, 45):
            told = [Outcome(client=c, outcome="ok", cost=nothing, loss=loss) for c in CLIENTS[:20]]
            cohort = selection.select(CLIENTS, 8, moment(r), rng(0, "cohort", r))
            assert ids(cohort) == sorted(set(ids(cohort)))
            selection.observe(r, told)


@every
def test_every_client_may_be_chosen(kind: type[Selection]) -> None:
    """A selection that never asks some clients never learns that they got better."""
    selection = new(kind)
    met = {client.client_id for cohort in play(selection, range(1, 201)) for client in cohort}
    assert met == set(range(N))


@every
def test_few_members_of_a_large_crowd_are_made(kind: type[Selection], monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 registered, a cohort of 20: at most 1,020 are looked at."""
    made = 0
    original = Crowd.__getitem__

    def counting(self: Crowd, index: Any) -> Any:
        nonlocal made
        made += 1
        return original(self, index)

    monkeypatch.setattr(Crowd, "__getitem__", counting)
    n = 100_000
    crowd = Crowd(np.full(n, 20), np.arange(n) % 3, DEVICES)
    selection = new(kind) if kind.__name__ != "Poisson" else kind(num_clients=n)  # type: ignore[call-arg]
    for r in range(1, 6):
        made = 0
        cohort = selection.select(crowd, 20, moment(r), rng(0, "cohort", r))
        assert len(cohort) <= made <= 1020
        selection.observe(r, [replace(o, client=c) for o, c in zip(outcomes(cohort, r), cohort, strict=True)])
