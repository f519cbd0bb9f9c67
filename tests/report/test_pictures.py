from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import pictures
from fedpeft.core.errors import ReportError
from fedpeft.report.reader import read_run


def test_the_terminal_is_drawn_from_the_run_alone(shared_run: Path, tmp_path: Path) -> None:
    """The picture shows the run in its second half and at its end, and nothing of this machine."""
    svg = pictures.terminal(read_run(shared_run), tmp_path / "t.svg").read_text()
    text = " ".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    assert "3/5" in text
    assert "48.7 % -> 81.9 %" in text
    assert "runs/demo/report.html" in text
    assert str(tmp_path.parent) not in text
    assert "url(http" not in svg.replace('"', "")


def test_an_unfinished_run_gets_no_picture(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rounds: 2\n")
    with pytest.raises(ReportError, match="holds no finished run"):
        pictures.main([str(tmp_path)])
