"""The page in a real browser: nothing sticks out at the width of a phone, nothing is loaded, every id is there once."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic_extras import make_hard, write_privacy, write_usable_memory

from fedpeft.report.page import render
from fedpeft.report.reader import read_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=20000",
)
PROBE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    page.querySelectorAll("details").forEach((one) => { one.open = true; });
    const ids = [...page.querySelectorAll("[id]")].map((one) => one.id);
    const outside = [...page.querySelectorAll("body *")].filter((one) =>
      !one.closest(".scroll") && !one.closest("svg") && one.getBoundingClientRect().right > width + 1);
    return {
      width, scroll: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
      ids: ids.length, unique: new Set(ids).size, drawings: page.querySelectorAll("svg").length,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name),
      outside: outside.slice(0, 5).map((one) => one.outerHTML.slice(0, 120)),
      lost: [...page.querySelectorAll("use")]
        .filter((one) => !page.querySelector(one.getAttribute("xlink:href"))).length,
    };
  });
  document.title = "probe:" + btoa(JSON.stringify(found));
});
</script>
"""


def probe(pages: list[str], width: int, folder: Path) -> list[dict[str, Any]]:
    """Open pages in frames ``width`` pixels wide and return what the browser measured.

    In a frame, because a headless window is at least 500 pixels wide; ``srcdoc`` lets the probe look inside.
    """
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
    )
    (folder / "probe.html").write_text(f"<!doctype html><title></title>{PROBE}<body>{frames}", encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        (folder / "probe.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r"<title>probe:([^<]+)</title>", done.stdout)
    assert match, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(base64.b64decode(match[1]))
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_pages_fit_a_phone_and_load_nothing(page_of_one: str, page_of_four: str, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rounds: 5\n")
    empty, private = read_run(tmp_path), read_run(write_usable_memory(make_hard(write_privacy(run_dir))))
    pages = [page_of_one, page_of_four, render([empty]), render([private]), render([private, empty])]
    probed = probe(pages, 400, tmp_path)
    assert len(probed) == len(pages)
    for found in probed:
        assert found["outside"] == []
        assert found["scroll"] <= found["width"] == 400
        assert found["loaded"] == []
        assert found["ids"] == found["unique"]
        assert found["lost"] == 0
        assert found["height"] > 400


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_the_probe_sees_what_sticks_out(tmp_path: Path) -> None:
    (found,) = probe(['<!doctype html><body><p id="a" style="width:900px">wide</p><p id="a"></p>'], 400, tmp_path)
    assert found["scroll"] > 400
    assert found["outside"]
    assert found["ids"] > found["unique"]
