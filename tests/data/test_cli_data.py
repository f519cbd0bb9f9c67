"""``fedpeft data`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpeft.cli.data import main
from fedpeft.core.errors import DataError
from fedpeft.data.catalogue import PACKAGES
from fedpeft.data.fetch import MARKER, folder_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    return tmp_path


def _pretend_fetched(cache: Path, name: str) -> Path:
    """Lay down a complete folder of one small file, in the form that fetch leaves."""
    package = next(package for package in PACKAGES if package.name == name)
    folder = folder_of(package, cache)
    folder.mkdir()
    made_from = {"requirement": package.requirement, "sha256": package.sha256, "recipe": package.recipe}
    (folder / MARKER).write_text(json.dumps({"made_from": made_from, "files": {}}))
    return folder


def test_list_as_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _pretend_fetched(cache, "sentiment")
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sentiment"]["cached"] and not rows["minilm"]["cached"]
    assert rows["sentiment"]["folder"] == str(folder) and rows["minilm"]["size_bytes"] == 83_506_384


def test_list_as_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "minilm" in out and "83.5 MB" in out and "MIT" in out and "yes" not in out


def test_fetch_prints_only_folders_on_stdout(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [_pretend_fetched(cache, "minilm"), _pretend_fetched(cache, "sentiment")]
    assert main(["fetch", "minilm", "sentiment"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder) for folder in folders]


def test_an_unknown_name_is_refused_before_anything_is_fetched(cache: Path) -> None:
    with pytest.raises(DataError, match="no package called 'nope'"):
        main(["fetch", "minilm", "nope"])
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), ([], 2), (["fetch"], 2), (["remove", "x"], 2)])
def test_usage(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    told = capsys.readouterr()
    assert stopped.value.code == code and "fedpeft data" in told.out + told.err
    if argv == ["--help"]:
        assert "fedpeft data fetch minilm sentiment" in told.out
