from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpeft.core.errors import ReportError
from fedpeft.report.reader import read_run


def test_a_finished_run_is_read_whole(run_dir: Path) -> None:
    view = read_run(run_dir)
    assert view.name == "demo-sentiment"
    assert view.status == "finished"
    assert [row.round for row in view.rounds] == [1, 2, 3, 4, 5]
    assert len(view.clients) == 5 * 12
    assert view.data is not None
    assert view.data.groups == ("movies", "products", "editorials", "tweets")
    assert len(view.data.clients) == 20
    assert view.config["cohort_size"] == 12
    assert view.notes == ()


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl", "evaluations.jsonl"])
def test_every_cut_of_the_last_line_is_left_out_and_said(run_dir: Path, name: str) -> None:
    """A line cut at any byte before its closing brace is no JSON; the lines before it stay."""
    path = run_dir / name
    lines = path.read_bytes().splitlines(keepends=True)
    for keep in (1, 7, len(lines[-1]) - 3):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:keep])
        view = read_run(run_dir)
        assert len(getattr(view, name.removesuffix(".jsonl"))) == len(lines) - 1
        assert any(name in note and "cut off" in note for note in view.notes)


def test_a_file_that_is_one_cut_line_reads_as_empty(run_dir: Path) -> None:
    (run_dir / "rounds.jsonl").write_text('{"round": 0, "eva')
    assert read_run(run_dir).rounds == ()


def test_a_cut_inside_a_letter_is_a_cut_line(run_dir: Path) -> None:
    with (run_dir / "clients.jsonl").open("ab") as file:
        file.write('{"round": 9, "device": "\u00e9'.encode()[:-1])
    assert len(read_run(run_dir).clients) == 60


def test_unreadable_json_in_the_middle_names_file_and_line(run_dir: Path) -> None:
    path = run_dir / "clients.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ReportError, match=r"clients\.jsonl line 7: cannot be read as JSON"):
        read_run(run_dir)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"round": "two"}, r"rounds\.jsonl line 1: round must be a whole number, got 'two'"),
        ({"round": True}, r"round must be a whole number"),
        ({"round": -1}, r"round must be a whole number from 0, got -1"),
        ({"eval": {}}, r"round must be a whole number from 0, got None"),
        ({"round": 1, "wall_s": True}, r"wall_s must be a number, got True"),
        ({"round": 1, "eval": [1]}, r"eval must be an object, got \[1\]"),
        ({"round": 1, "eval": {"accuracy": "high"}}, r"line 1, eval: accuracy must be a number, got 'high'"),
        ({"round": 1, "dropped": {"late": 1.5}}, r"dropped: late must be a whole number"),
        ([1, 2], r"line 1: must hold a JSON object, got list"),
    ],
)
def test_a_wrong_type_is_refused_in_one_line(tmp_path: Path, line: object, message: str) -> None:
    (tmp_path / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ReportError, match=message) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_count_as_unknown(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text(
        '{"round": 1, "train_loss": NaN, "wall_s": 1e999, "eval": {"accuracy": NaN, "loss": 0.5}}\n'
    )
    (row,) = read_run(tmp_path).rounds
    assert (row.train_loss, row.wall_s, dict(row.eval)) == (None, None, {"loss": 0.5})


def test_a_repeated_round_counts_once_with_its_later_line(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "wall_s": 5}\n{"round": 2}\n{"round": 1, "wall_s": 7}\n')
    view = read_run(tmp_path)
    assert [(row.round, row.wall_s) for row in view.rounds] == [(1, 7.0), (2, None)]
    assert "1 repeated" in view.notes[0]


def test_a_run_that_has_just_begun_is_empty_but_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    view = read_run(tmp_path)
    assert (view.rounds, view.clients, view.data, view.status) == ((), (), None, "unknown")
    assert view.name == tmp_path.name


def test_what_is_not_a_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"holds none of config\.yaml"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is not a directory"):
        read_run(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", '{"status": ', "cannot be read as JSON"),
        ("summary.json", "[]", "must hold a JSON object, got list"),
        ("config.yaml", "a: [1", "cannot be read as YAML"),
        ("config.yaml", "- 1", "must hold a mapping, got list"),
        ("data.json", '{"clients": [3]}', "clients must be a list of objects"),
        (
            "data.json",
            '{"clients": [{"client_id": 0, "labels": {"a": "b"}}]}',
            "client 0, labels: a must be a whole number",
        ),
    ],
)
def test_a_damaged_file_is_named(run_dir: Path, name: str, text: str, message: str) -> None:
    (run_dir / name).write_text(text)
    with pytest.raises(ReportError, match=message) as caught:
        read_run(run_dir)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
