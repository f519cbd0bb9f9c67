"""The sentiment table, from a toy archive of the same shape as the real one."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.catalogue import find
from fedpeft.data.fetch import is_complete
from fedpeft.data.sentiment import build_sentiment, parse_ratings
from fedpeft.data.sources import load_table

FILES = {
    "movieReviewSnippets": b"1\t2.5\tgrand\r\n2\t-0.5\tdull\n",
    "amazonReviewSnippets": b"1_1\t0.5\tworks\n1_2\t0.4999\tit is a box\n",
    "nytEditorialSnippets": b"\xef\xbb\xbf1_1\t-3\tgrim \xff news\n\n",
    "tweets": b"1\t-0.49\tmeh\n2\t4\tyay &amp; yay\n",
}


def _gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_rows_near_neutral_are_left_out_and_the_rest_keep_their_order(tmp_path: Path) -> None:
    """Of seven rows 0.4999 and -0.49 lie within 0.5 of neutral, so five stay; 0.5 itself is kept as positive."""
    inner = _gz({f"hutto_ICWSM_2014/{name}_GroundTruth.txt": content for name, content in FILES.items()})
    archive = tmp_path / "sdist.tar.gz"
    archive.write_bytes(_gz({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    out = tmp_path / "out"
    out.mkdir()
    build_sentiment(archive, out)
    table = load_table(
        str(out), text_columns=["text"], label_column="label", group_column="group", extra_columns=["rating"]
    )
    assert table.texts == [("grand",), ("dull",), ("works",), ("grim \ufffd news",), ("yay &amp; yay",)]
    assert table.label_names == ("negative", "positive") and table.labels.tolist() == [1, 0, 1, 0, 1]
    assert [table.group_names[g] for g in table.groups] == ["movies", "movies", "products", "editorials", "tweets"]
    assert table.columns["rating"].tolist() == [2.5, -0.5, 0.5, -3.0, 4.0]


def test_a_strange_line_is_named() -> None:
    with pytest.raises(DataError, match=r"f.txt, line 2: expected id, rating and text"):
        parse_ratings(b"1\t1.0\tfine\n2\tmany\twords\n", "f.txt")


@pytest.mark.skipif("FEDPEFT_CACHE" not in os.environ, reason="set FEDPEFT_CACHE to a cache with the real data")
def test_the_real_table_has_the_known_counts() -> None:
    """Counted in the raw files, apart from this code: so many rows with abs(rating) >= 0.5, and so many above 0."""
    if not is_complete(find("sentiment"), Path(os.environ["FEDPEFT_CACHE"])):
        pytest.skip("fetch it first: fedpeft data fetch sentiment")
    table = load_table("package:sentiment", text_columns=["text"], label_column="label", group_column="group")
    held = {name: int((table.groups == i).sum()) for i, name in enumerate(table.group_names)}
    assert held == {"movies": 10072, "products": 2985, "editorials": 2970, "tweets": 3432}
    assert int(table.labels.sum()) == 4996 + 1750 + 1187 + 2345
