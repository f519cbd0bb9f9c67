"""Lines and files survive a crash at any moment."""

from __future__ import annotations

from pathlib import Path

from fedpeft.server.files import append_lines, keep_rounds, read_lines, write_atomic


def test_a_cut_off_last_line_is_left_out_and_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_lines(path, [{"round": 1, "x": "a"}, {"round": 2}])
    append_lines(path, [{"round": 3}])
    with open(path, "ab") as file:
        file.write(b'{"round": 4, "x"')
    assert [row["round"] for row in read_lines(path)] == [1, 2, 3]
    assert [row["round"] for row in keep_rounds(path, 2)] == [1, 2]
    assert path.read_text() == '{"round": 1, "x": "a"}\n{"round": 2}\n'


def test_missing_files_hold_nothing(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none") == []
    assert keep_rounds(tmp_path / "none", 3) == []


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
