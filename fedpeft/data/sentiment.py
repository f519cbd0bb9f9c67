"""Sentiment in four domains, human-rated: the ground truth of Hutto and Gilbert, ICWSM 2014, as one table.

Source: "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014. Twenty people
rated each text from -4 to 4; the files give the mean rating.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.data.archive import read_member

MIN_RATING = 0.5
"""Texts whose mean rating lies closer to neutral than this are left out: raters did not agree on a side."""

_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = (
    ("movies", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"),
    ("products", "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"),
    ("editorials", "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"),
    ("tweets", "hutto_ICWSM_2014/tweets_GroundTruth.txt"),
)
_MAX_BYTES = 16 << 20


def build_sentiment(archive: Path, out: Path) -> None:
    """Write ``data.parquet`` into ``out`` from the sdist of vaderSentiment 3.3.2.

    Columns: ``text`` (string), ``label`` (int64, 1 where the mean rating is positive; named negative, positive in the
    Hugging Face schema), ``group`` (string: movies, products, editorials or tweets), ``rating`` (float64, -4..4). Rows
    with abs(rating) < `MIN_RATING` are left out; the others keep the order of the files.

    Args:
        archive: the sdist.
        out: an existing folder.

    Raises:
        DataError: the archive does not hold the files, or a line in them is not ``id <tab> rating <tab> text``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    inner = read_member(archive, _INNER, max_bytes=_MAX_BYTES)
    rows: list[tuple[str, int, str, float]] = []
    for group, name in _FILES:
        content = read_member(io.BytesIO(inner), name, max_bytes=_MAX_BYTES)
        rows += [(text, int(rating > 0), group, rating) for rating, text in parse_ratings(content, name)]
    text, label, groups, rating = zip(*rows, strict=True)
    schema = pa.schema(
        [("text", pa.string()), ("label", pa.int64()), ("group", pa.string()), ("rating", pa.float64())],
        metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
    )
    pq.write_table(pa.table([text, label, groups, rating], schema=schema), out / "data.parquet")


def parse_ratings(content: bytes, name: str) -> list[tuple[float, str]]:
    """Return (mean rating, text) of each line that has a clear side.

    Args:
        content: lines of ``id <tab> mean rating <tab> text``; bytes that are no UTF-8 become U+FFFD.
        name: the file's name, for the message.

    Raises:
        DataError: a line that is not of this form; names file and line number.
    """
    kept = []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            _, rating, text = line.split("\t")
            value = float(rating)
        except ValueError as error:
            raise DataError(f"{name}, line {number}: expected id, rating and text, got {line!r}") from error
        if abs(value) >= MIN_RATING:
            kept.append((value, text.strip()))
    return kept


_FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
    "group": {"dtype": "string", "_type": "Value"},
    "rating": {"dtype": "float64", "_type": "Value"},
}
