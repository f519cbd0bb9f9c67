from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import Shape, write_run

from fedpeft.core.errors import ReportError
from fedpeft.report.page import labels, render, write_report
from fedpeft.report.reader import read_run

VOID = {"meta", "link", "br", "img", "hr", "input"}
LOADING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action"}


class Page(HTMLParser):
    """Collects ids, references and open tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in LOADING]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_is_self_contained_and_sound(page_of_one: str, page_of_four: str) -> None:
    for text in (page_of_one, page_of_four):
        page = Page(text)
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))
        assert all(reference.startswith(("#", "data:")) for reference in page.references)
        assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
        assert page.scripts == 0
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)


def test_one_run_shows_its_figures(shared_run: Path, page_of_one: str) -> None:
    """What the page says is what the files hold."""
    summary = json.loads((shared_run / "summary.json").read_text())
    text = Page(page_of_one).text
    assert f"{100 * summary['final']['accuracy']:.1f} %" in text
    assert f"{100 * summary['initial']['accuracy']:.1f} % before" in text
    assert f"{summary['bytes_up'] / 1e6:.1f} MB" in text
    assert "delta 1e-05" in text
    for group in ("movies", "products", "editorials", "tweets"):
        assert group in text
    lines = [json.loads(line) for line in (shared_run / "clients.jsonl").read_text().splitlines()]
    dropped = [line for line in lines if line["outcome"] != "ok"]
    assert len(dropped) > 4
    for line in dropped:
        assert re.search(
            rf"\n{line['client_id']}{line['device']}\d.*{line['outcome']}: rounds? [0-9, ]*{line['round']}", text
        )


def test_several_runs_show_what_differs(page_of_four: str) -> None:
    text = Page(page_of_four).text
    assert "4 runs side by side" in text
    assert "same (r0)" in text
    assert "same (r1)" in text
    assert "method.rank816816" in text
    assert "method.namelora" not in text


def test_runs_with_one_name_in_directories_of_one_name_get_numbers(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / side / "run", Shape(num_rounds=1)) for side in "ab"]
    assert labels([read_run(folder) for folder in folders]) == ["demo-sentiment (run) #1", "demo-sentiment (run) #2"]


def test_any_file_may_be_missing(run_dir: Path) -> None:
    names = ["data.json", "evaluations.jsonl", "clients.jsonl", "summary.json", "rounds.jsonl"]
    for name in names:
        (run_dir / name).unlink()
        assert Page(text := render([read_run(run_dir)])).open == []
    assert "No round has an accuracy on record yet" in text
    assert "unknown" in text


def test_any_number_may_be_null(run_dir: Path) -> None:
    """Every value of every line but the keys becomes null; the page still stands."""
    keys = {"round", "client_id", "device", "outcome"}
    for name in ("rounds.jsonl", "clients.jsonl", "evaluations.jsonl"):
        rows = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
        blank = [{key: value if key in keys else None for key, value in row.items()} for row in rows]
        (run_dir / name).write_text("".join(json.dumps(row) + "\n" for row in blank))
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(dict.fromkeys(summary)))
    data = {
        "clients": [{"client_id": 0, "device": None, "num_examples": None, "labels": None, "groups": None}],
        "labels": None,
    }
    (run_dir / "data.json").write_text(json.dumps(data))
    assert Page(render([read_run(run_dir)])).open == []


def test_names_in_a_run_directory_are_only_text(run_dir: Path) -> None:
    evil = '<script>alert("x")</script><img src=http://example.org/x onerror=alert(1)>'
    for name in ("clients.jsonl", "data.json", "rounds.jsonl", "summary.json", "evaluations.jsonl", "config.yaml"):
        path = run_dir / name
        text = path.read_text()
        for word in ("phone-low", "movies", "demo-sentiment", "device left", "positive", "fedpeft"):
            text = text.replace(word, json.dumps(evil)[1:-1] if name != "config.yaml" else evil)
        path.write_text(text)
    page = Page(render([read_run(run_dir)]))
    assert page.scripts == 0
    assert page.open == []
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert '<script>alert("x")</script>' in page.text


def test_the_report_lands_beside_one_run_and_here_for_several(
    shared_run: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_report([run_dir]) == run_dir / "report.html"
    assert write_report([run_dir, shared_run]) == Path("report.html")
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    assert write_report([run_dir], tmp_path / "x.html").is_file()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_page_that_cannot_be_written_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"cannot write .*choose another place"):
        write_report([run_dir], tmp_path / "absent" / "x.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ReportError, match="cannot write"):
        write_report([run_dir], tmp_path / "taken")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_run_given_twice_is_refused(run_dir: Path) -> None:
    with pytest.raises(ReportError, match="given twice"):
        write_report([run_dir, run_dir / ".." / "demo"])
    with pytest.raises(ReportError, match="at least one"):
        write_report([])


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    """300 rounds of 40 clients: bars are binned and the page is below 1 MB (measured 0.4 MB)."""
    folder = write_run(tmp_path / "long", Shape(num_rounds=300, num_clients=400, cohort_size=40))
    text = render([read_run(folder)])
    assert len(text) < 1_000_000
    assert "Each bar is the mean of 7 rounds" in text
    assert "the first 40 of 400 clients" in text


def test_one_evaluation_on_the_clients_is_a_table(run_dir: Path) -> None:
    """A single evaluated round: its mean stands in the table, and no curve of one point is drawn."""
    path = run_dir / "evaluations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = [row for row in rows if row["round"] == 5]
    path.write_text("".join(json.dumps(row) + "\n" for row in last))
    text = render([read_run(run_dir)])
    mean = sum(row["accuracy"] for row in last) / len(last)
    assert f"mean of the clients{100 * mean:.1f} %" in Page(text).text
    assert "client-spread" not in text


def test_columns_that_nobody_filled_are_left_out(run_dir: Path) -> None:
    path = run_dir / "clients.jsonl"
    rows = [json.loads(line) | {"energy_j": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Page(render([read_run(run_dir)])).text
    assert "uploadpeak memory\n" in text
