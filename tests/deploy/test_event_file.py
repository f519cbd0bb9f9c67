"""Events survive a file: what the launcher reads is what the ServerApp told."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.events import ClientReplied, Event, Preparing, PrivacyPromised
from fedpeft.core.types import Cost
from fedpeft.engines.deploy.event_file import EventFile, Follower, ServerFailedError

COST = Cost(down_s=1.0, compute_s=2.0, up_s=0.5, energy_j=None, peak_memory_mb=7.0)
VALUES: dict[str, Any] = {
    "str": "text", "int": 3, "float": 0.25, "bool": True, "int | None": None, "float | None": 0.5, "Cost": COST,
    "Cost | None": COST, "tuple[str, ...]": ("a: b", "c: d"), "Mapping[str, Any]": {"round": 1},
    "Mapping[str, float | list[float]]": {"train-loss": 0.5, "group-count": [1.0, 2.0]},
}  # fmt: skip


def sample(kind: Any) -> Event:
    event: Event = kind(**{one.name: VALUES[str(one.type)] for one in fields(kind)})
    return event


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_event_comes_back_equal(kind: Any, tmp_path: Path) -> None:
    assert is_dataclass(kind)
    path, told = tmp_path / "events.jsonl", sample(kind)
    write, follow = EventFile(path), Follower(path)
    write(told)
    assert list(follow.new()) == [told]
    assert list(follow.new()) == []
    write.close()


def test_half_a_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follow = Follower(path)
    assert list(follow.new()) == []
    line = json.dumps({"event": "Preparing", "what": "x"}) + "\n"
    path.write_text(line + line[:10])
    assert list(follow.new()) == [Preparing(what="x")]
    with path.open("a") as stream:
        stream.write(line[10:])
    assert list(follow.new()) == [Preparing(what="x")]


def test_a_file_that_is_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    """A ServerApp that was started again tells everything again."""
    path = tmp_path / "events.jsonl"
    follow = Follower(path)
    for what in ("a long first story", "b"):
        EventFile(path)(Preparing(what=what))
        assert list(follow.new()) == [Preparing(what=what)]


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [(ConfigError("no such thing (set it)"), "no such thing (set it)", 2), (KeyError("k"), "KeyError: 'k'", 1)],
)
def test_a_failure_has_its_words_and_its_exit_code(error: Exception, text: str, code: int, tmp_path: Path) -> None:
    write = EventFile(tmp_path / "events.jsonl")
    write(PrivacyPromised(lines=("unit: one client",)))
    write.failed(error)
    events = list(Follower(tmp_path / "events.jsonl").new())
    assert events[0] == PrivacyPromised(lines=("unit: one client",))
    assert isinstance(events[1], ServerFailedError)
    assert (str(events[1]), events[1].exit_code) == (text, code)


def test_costs_are_costs_again(tmp_path: Path) -> None:
    write = EventFile(tmp_path / "events.jsonl")
    write(sample(ClientReplied))
    (event,) = Follower(tmp_path / "events.jsonl").new()
    assert isinstance(event, ClientReplied)
    assert event.cost.total_s == 3.5
