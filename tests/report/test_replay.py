from __future__ import annotations

from pathlib import Path

from fedpeft.core.events import ClientRejected, ClientReplied, RoundFinished, RunFinished, RunStarted
from fedpeft.report.reader import read_run
from fedpeft.report.replay import replay


def test_a_run_comes_back_as_its_events(shared_run: Path) -> None:
    view = read_run(shared_run)
    events = list(replay(view))
    assert isinstance(events[0], RunStarted)
    assert (events[0].num_rounds, events[0].num_clients, events[0].cohort_size) == (5, 20, 12)
    assert isinstance(events[-1], RunFinished)
    assert [e.record["round"] for e in events if isinstance(e, RoundFinished)] == [0, 1, 2, 3, 4, 5]
    replies = [e for e in events if isinstance(e, ClientReplied)]
    assert len(replies) == len(view.clients)
    rejected = [e for e in events if isinstance(e, ClientRejected)]
    assert len(rejected) == sum(line.outcome.startswith("rejected:") for line in view.clients) > 0
    assert events[1] == RoundFinished(server_round=0, record={"round": 0, "eval": view.summary["initial"]})
    assert {e.outcome for e in replies} <= {"ok", "late", "lost"}
