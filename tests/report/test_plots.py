from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from fedpeft.report import plots
from fedpeft.report.plots import Curve, Part

NASTY = ["$x^2$", '" id="#000201" onload="x', "<script>alert(1)</script>", "#000101", "url(#p1)", "\u65e5\u672c"]


def draw(kind: str, key: str, labels: list[str]) -> str:
    part = Part(name="a", colour=2, values=[1.0] * len(labels))
    if kind == "lines":
        curve = Curve(name=labels[0], colour=9, xs=[0, 1], ys=[0.2, 0.4], band=([0.1, 0.3], [0.3, 0.5]))
        return plots.lines(key, [curve], x_label=labels[0], y_label="y", percent=True)
    if kind == "columns":
        return plots.columns(key, labels, [part], x_label="x", y_label="y")
    if kind == "rows":
        return plots.rows(key, labels, [part, part], x_label="x")
    return plots.strips(key, labels, [[0.1, 0.2]] * len(labels), x_label="x")


@pytest.mark.parametrize("kind", ["lines", "columns", "rows", "strips"])
def test_a_drawing_is_well_formed_and_its_links_stay_inside(kind: str) -> None:
    svg = draw(kind, "k7", ["a", "b", "c"])
    ElementTree.fromstring(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) == set(ids)
    assert all(name.startswith("k7-") for name in ids)
    assert "<style" not in svg
    assert "metadata" not in svg
    assert not re.search(r"#000[12]0[0-9a-f]", svg)
    assert "var(--" in svg


@pytest.mark.parametrize("kind", ["lines", "columns", "rows", "strips"])
def test_names_from_outside_stay_text(kind: str) -> None:
    """Nothing in a label may become a tag, an attribute, math or a colour."""
    svg = draw(kind, "k", NASTY)
    root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= set(NASTY[:1] if kind == "lines" else NASTY)
    assert "<script" not in svg
    assert not any("onload" in element.attrib for element in root.iter())


def test_matplotlib_is_left_as_it_was() -> None:
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    draw("rows", "k", ["a"])
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend(auto_select=False) == backend


def test_the_same_drawing_is_the_same_text() -> None:
    assert draw("columns", "k", ["a", "b"]) == draw("columns", "k", ["a", "b"])
