"""Hostile replies by registered devices, through the real SuperLink to the real ServerApp, over TLS and with keys.

    python -m pytest -m slow tests/deploy/test_hostile_wire.py -s

``test_arriving_grid.py`` has what a ServerApp makes of them, without processes.
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest
import toy as maker
from fake_grid import honest_train
from flwr.app import Message, RecordDict
from forge import BOMB_FILE
from hostile import CASES, MAX_BYTES, Case
from light_nodes import Answer, Parcel, honest_answer, register, running
from real_federation import Federation, smaller
from safetensors.numpy import load_file
from wire_forgeries import UNSENDABLE, WIRE_CASES, WireCase, carried

from fedpeft.core import wire
from fedpeft.core.tensors import weighted_mean
from fedpeft.core.types import Tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HONEST = 4
DEADLINE_S = 90
"""The round with the replies that never come takes it; the others take some seconds, on a busy machine some more."""
QUIET = {"silence", *(case.name for case in WIRE_CASES if case.outcome == "late")}
MISNAMED = "announced under another id"
SMOKE = {
    "NaN",
    "broadcastable (1, n)",
    "bare pickle",
    "weight 1000000000000",
    "another run",
    "two replies",
    "error reply",
}


class Stage:
    """Who plays what, and what was seen: what the server sent, and what must count.

    Args:
        cases: to play, each by one device in one round.
        hostile: devices that play.
    """

    def __init__(self, cases: Sequence[Case | WireCase], hostile: int) -> None:
        quiet = [case for case in cases if case.name in QUIET]
        others = [case for case in cases if case.name not in QUIET]
        # Whoever never answers costs the round its deadline: all of them in one round, and not the last.
        batches = [quiet, *(others[at : at + hostile] for at in range(0, len(others), hostile))]
        self.rounds = [batch for batch in batches if batch]
        assert len(quiet) <= hostile and len(self.rounds) > 1
        self.sent: dict[int, Tensors] = {}
        self.counting: dict[tuple[int, int], tuple[Tensors, int]] = {}
        self.unsendable: set[str] = set()
        self._lock = threading.Lock()

    def case(self, server_round: int, client_id: int) -> Case | WireCase | None:
        batch = self.rounds[server_round - 1]
        return batch[client_id - HONEST] if 0 <= client_id - HONEST < len(batch) else None

    def answer(self, client_id: int, message: Message) -> list[Message | Parcel]:
        if message.metadata.message_type == wire.HELLO_QUERY:
            return honest_answer(client_id, message)
        server_round = wire.round_of(message.content)
        content = honest_train(client_id, message)
        with self._lock:
            self.sent[server_round] = wire.decode_own(message.content.array_records[wire.ARRAYS])
            # Forgeries choose one tensor by its name; this model has one of the shape that they expect.
            forge.KEY = next(key for key, value in self.sent[server_round].items() if value.shape == forge.SHAPE)
            return self._played(self.case(server_round, client_id), (server_round, client_id), message, content)

    def expected(self, server_round: int) -> Tensors:
        """Return the mean of what counted."""
        found = sorted((client, kept) for (r, client), kept in self.counting.items() if r == server_round)
        return weighted_mean([tensors for _, (tensors, _) in found], [weight for _, (_, weight) in found])

    def _played(
        self, case: Case | WireCase | None, at: tuple[int, int], message: Message, content: RecordDict
    ) -> list[Message | Parcel]:
        honest = wire.decode_own(content.array_records[wire.ARRAYS]), 10 + at[1]
        if case is None:
            self.counting[at] = honest
            return [Message(content, reply_to=message)]
        if isinstance(case, WireCase):
            if case.outcome == "ok":
                self.counting[at] = honest
            return [case.make(message, content)]
        replies = case.make(message, content)
        try:
            parcels: list[Message | Parcel] = [Parcel.of(one) for one in replies]
        except Exception:
            self.unsendable.add(case.name)
            return self._played(None, at, message, content)
        outcome, weight = carried(case)
        if outcome == "ok":
            tensors = wire.decode_own(replies[0].content.array_records[wire.ARRAYS])
            self.counting[at] = tensors, honest[1] if weight is None else weight
        return parcels


def outcome(case: Case | WireCase) -> str:
    """Return what must stand in ``clients.jsonl``."""
    return case.outcome if isinstance(case, WireCase) else carried(case)[0]


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Callable[[Sequence[Case | WireCase], int], tuple[Stage, Federation]]]:
    """Return a function that runs a federation in which cases are played."""
    BOMB_FILE.unlink(missing_ok=True)
    key = forge.KEY
    model = maker.write_model(tmp_path / "model", hidden=4, layers=1)
    kept = smaller(maker.overrides(model, maker.write_data(tmp_path / "data")))
    kept = [one for one in kept if not one.startswith(("method.", "rounds=", "num_clients", "cohort_size"))]
    made = Federation(folder=tmp_path, files=[], overrides=kept)

    def play(cases: Sequence[Case | WireCase], hostile: int) -> tuple[Stage, Federation]:
        stage, count = Stage(cases, hostile), HONEST + hostile
        made.overrides += ["method.rank=3", "method.target_modules=[query]", f"guard.max_bytes={MAX_BYTES}"]
        made.overrides += [f"num_clients={count}", f"cohort_size={count}", f"rounds={len(stage.rounds)}"]
        made.overrides += [f"round.deadline_s={DEADLINE_S}"]
        made.state.mkdir()
        keys = register(made.state, count)
        made.start_server("report=false")
        made.wait_for("server", "starting Flower's SuperLink")
        answers: dict[int, Answer] = dict.fromkeys(range(count), stage.answer)
        with running(keys, made.address, made.state / "ca.crt", answers):
            assert made.wait_until_done(700) == 0, made.everything()
        return stage, made

    yield play
    made.end()
    forge.KEY = key
    assert not BOMB_FILE.exists(), "a reply ran code"


def check(stage: Stage, made: Federation) -> None:
    """Every offender is named for what it did, and only honest means were ever the model."""
    rows = [json.loads(line) for line in (made.run_dir / "clients.jsonl").read_text().splitlines()]
    found: dict[tuple[int, int], dict[str, Any]] = {(row["round"], row["client_id"]): row for row in rows}
    for server_round, batch in enumerate(stage.rounds, start=1):
        for client_id in range(HONEST + len(batch)):
            case, row = stage.case(server_round, client_id), found[server_round, client_id]
            honest = case is None or case.name in stage.unsendable
            wanted = "ok" if case is None or honest else outcome(case)
            assert row["outcome"] == wanted, (case.name if case else "honest", row)
            assert row["outcome"] == "ok" or row["detail"]
        after = stage.sent.get(server_round + 1) or last_tensors(made)
        same(stage.expected(server_round), after, f"round {server_round}")
    assert json.loads((made.run_dir / "summary.json").read_text())["status"] == "finished"


def last_tensors(made: Federation) -> Tensors:
    newest = max((made.run_dir / "checkpoints").glob("round-*"))
    return dict(load_file(newest / "tensors.safetensors"))


def same(expected: Tensors, got: Tensors, what: str) -> None:
    assert set(expected) == set(got), what
    for key, value in expected.items():
        assert np.array_equal(value, got[key]) and value.dtype == got[key].dtype, (what, key)


def left_in_the_database(made: Federation) -> dict[str, int]:
    """Return what the SuperLink still keeps of messages: rows by table."""
    tables = ("objects", "object_children", "run_objects", "message_res")
    with sqlite3.connect(f"file:{made.state / 'flower.db'}?mode=ro", uri=True) as database:
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


def test_what_only_a_wire_can_carry_is_refused_by_name(played: Any) -> None:
    """And no object of it is left, of those that never came whole included."""
    # What belongs to no message of a known id is kept to the end of the run.
    cases = [case for case in WIRE_CASES if case.name != MISNAMED]
    stage, made = played([*cases, *(case for case in CASES if case.name in SMOKE)], 16)
    check(stage, made)
    assert left_in_the_database(made) == {"objects": 0, "object_children": 0, "run_objects": 0, "message_res": 0}


def test_every_hostile_reply_of_the_table(played: Any) -> None:
    cases = [*CASES, next(case for case in WIRE_CASES if case.name == MISNAMED)]
    random.Random(0).shuffle(cases)
    stage, made = played(cases, 20)
    check(stage, made)
    print(f"{len(cases) - len(stage.unsendable)} cases; no wire carries: {sorted(stage.unsendable)}")
    assert stage.unsendable == UNSENDABLE
