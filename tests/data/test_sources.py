"""Where tables and models come from: folders, files, the hub's form, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.readers import files_of_split, read_hub
from fedpeft.data.sources import load_table, resolve_model
from fedpeft.data.table import Table

ROWS = {"text": ["b", "a", "12"], "label": ["pos", "neg", "pos"], "site": ["x", "y", "x"]}


def _write(folder: Path, name: str, rows: dict[str, list[object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    else:
        records = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _load(path: Path | str, **options: object) -> Table:
    return load_table(str(path), **{"text_columns": ["text"], "label_column": "label", **options})


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_every_kind_of_file_gives_the_same_table(tmp_path: Path, kind: str, whole_folder: bool) -> None:
    """Classes are numbered in sorted order: neg 0, pos 1. The text 12 stays text in CSV too."""
    path = _write(tmp_path / "d", f"any.{kind}", ROWS)
    table = _load(path.parent if whole_folder else path, group_column="site", extra_columns=["site"])
    assert table.texts == [("b",), ("a",), ("12",)]
    assert table.labels.tolist() == [1, 0, 1] and table.label_names == ("neg", "pos") and table.labels.dtype == np.int64
    assert table.groups.tolist() == [0, 1, 0] and table.group_names == ("x", "y")
    assert table.columns["site"].tolist() == ["x", "y", "x"] and len(table) == 3


def test_texts_that_only_look_like_numbers_or_nulls_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n007,0\nNA,1\n"two\nlines, one text",0\n')
    assert _load(tmp_path).texts == [("007",), ("NA",), ("two\nlines, one text",)]


def test_a_csv_of_number_like_texts_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n007,0\n12,1\n")
    assert _load(tmp_path).texts == [("007",), ("12",)]


def test_line_breaks_inside_texts_survive_in_long_csv_files(tmp_path: Path) -> None:
    """Readers cut a CSV of more than 1 MB into blocks; 3000 texts of 600 characters in 30 lines are 1.8 MB."""
    text = "\n".join(["nineteen characters"] * 30)
    (tmp_path / "a.csv").write_text("text,label\n" + f'"{text}",1\n' * 3000)
    assert _load(tmp_path).texts == [(text,)] * 3000


def test_pairs_and_one_group_without_a_group_column(tmp_path: Path) -> None:
    _write(tmp_path, "train.parquet", {"s1": ["a", "b"], "s2": ["c", "d"], "label": [5, 3]})
    table = _load(tmp_path, text_columns=["s1", "s2"])
    assert table.texts == [("a", "c"), ("b", "d")]
    assert table.labels.tolist() == [1, 0] and table.label_names == ("3", "5")
    assert table.groups.tolist() == [0, 0] and table.group_names == ("all",)


def test_integers_are_numbered_as_numbers(tmp_path: Path) -> None:
    """As text 10 would come before 9."""
    _write(tmp_path, "train.parquet", {"text": ["a", "b"], "label": [10, 9]})
    assert _load(tmp_path).label_names == ("9", "10")


def _class_label(path: Path, names: list[str], labels: list[int]) -> None:
    feature = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    rows = pa.table({"text": ["t"] * len(labels), "label": labels})
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})}), path)


def test_class_label_names_and_ids_are_kept(tmp_path: Path) -> None:
    """Names are not sorted and the class that no row has keeps its id, as in the Hugging Face data set."""
    _class_label(tmp_path / "train.parquet", ["zero", "never", "also"], [2, 0])
    table = _load(tmp_path)
    assert table.labels.tolist() == [2, 0] and table.label_names == ("zero", "never", "also")


def test_class_ids_outside_the_names_are_refused(tmp_path: Path) -> None:
    _class_label(tmp_path / "train.parquet", ["zero", "one"], [0, 2])
    with pytest.raises(DataError, match=r"must be in 0..1, got 0..2"):
        _load(tmp_path)


def test_splits_agree_on_ids(tmp_path: Path) -> None:
    """Alone, the validation split would number its only class 0; like=train keeps id 2. A new group comes last."""
    _write(tmp_path, "train.csv", {"text": "abc", "label": ["p", "q", "r"], "site": ["m", "n", "n"]})
    _write(tmp_path, "dev.csv", {"text": "de", "label": ["r", "r"], "site": ["a", "n"]})
    train = _load(tmp_path, group_column="site")
    valid = _load(tmp_path, split="validation", group_column="site", like=train)
    assert valid.labels.tolist() == [2, 2] and valid.label_names == train.label_names
    assert valid.groups.tolist() == [2, 1] and valid.group_names == ("m", "n", "a")


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "train.csv", {"text": "ab", "label": ["p", "q"]})
    _write(tmp_path, "test.csv", {"text": "ab", "label": ["p", "s"]})
    with pytest.raises(DataError, match=r"classes \['s'\] that the training split lacks"):
        _load(tmp_path, split="test", like=_load(tmp_path))


def test_shards_are_joined_in_order_and_splits_kept_apart(tmp_path: Path) -> None:
    _write(tmp_path, "train-00001-of-00002.jsonl", {"text": ["c"], "label": [0]})
    _write(tmp_path, "train-00000-of-00002.jsonl", {"text": ["a", "b"], "label": [0, 1]})
    _write(tmp_path, "VALIDATION.jsonl", {"text": ["v"], "label": [1]})
    (tmp_path / "README.md").write_text("passed over")
    assert _load(tmp_path).texts == [("a",), ("b",), ("c",)]
    assert _load(tmp_path, split="validation").texts == [("v",)]


@pytest.mark.parametrize(
    ("names", "split", "match"),
    [
        ([], "train", "holds no data files"),
        (["a.csv", "b.parquet"], "train", r"mixes .csv and .parquet"),
        (["train.csv", "other.csv"], "train", "other.csv belongs to no split"),
        (["train.csv", "test.csv"], "validation", "no split 'validation': there are test, train"),
        (["testimonials.csv"], "test", "no split 'test': there are train"),
        (["training.csv"], "test", "no split 'test': there are train"),
    ],
)
def test_folders_that_say_too_little(tmp_path: Path, names: list[str], split: str, match: str) -> None:
    for name in names:
        _write(tmp_path, name, {"text": ["a"], "label": [0]})
    with pytest.raises(DataError, match=match):
        files_of_split(tmp_path, split)


def test_missing_columns_list_those_there_are(tmp_path: Path) -> None:
    for kind in ("parquet", "csv", "jsonl"):
        _write(tmp_path / kind, f"train.{kind}", ROWS)
        with pytest.raises(DataError, match="no column 'sentence', 'speaker': there are text, label, site"):
            _load(tmp_path / kind, text_columns=["sentence"], group_column="speaker")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"text": ["a", None, None], "label": [0, 1, 1]}, "2 of 3 rows have no text in 'text'"),
        ({"text": ["a", "b", "c"], "label": [0, None, -1]}, "2 of 3 rows have no label"),
        ({"text": ["a", "b", "c"], "label": ["x", None, "y"]}, "1 of 3 rows have no label"),
        ({"text": ["a", "b", "c"], "label": [-1, -1, -1]}, "no row has a label .*use another split"),
        ({"text": ["a", "b", "c"], "label": [0.5, 1.5, 1.0]}, "holds double; classes and groups must be"),
        ({"text": [1, 2, 3], "label": [0, 1, 0]}, "text column 'text' holds int64, not text"),
    ],
)
def test_rows_that_are_not_whole_are_counted_and_refused(tmp_path: Path, rows: dict, match: str) -> None:
    _write(tmp_path, "train.parquet", rows)
    with pytest.raises(DataError, match=match):
        _load(tmp_path)


def test_rows_without_a_group_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, "train.parquet", {"text": ["a", "b"], "label": [0, 1], "site": ["m", None]})
    with pytest.raises(DataError, match="1 of 2 rows have no group"):
        _load(tmp_path, group_column="site")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_unreadable_files_are_named_in_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"train.{kind}").write_bytes(b'{"a": \x00\xff\nrubbish')
    with pytest.raises(DataError, match=f"train.{kind}") as error:
        _load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path, kind: str, column: str) -> None:
    """The mark Q becomes the stray byte 0xff after the file was written; parquet stores short text as it is."""
    rows = {"text": ["a", "b"], "label": ["x", "y"]}
    rows[column][1] = "QQQQ"
    path = _write(tmp_path, f"train.{kind}", rows)
    if kind == "parquet":
        pq.write_table(pa.table(rows), path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xff\xff\xff"))
    with pytest.raises(DataError, match=r"(?i)utf-?8"):
        _load(tmp_path)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "train.csv", {"text": [], "label": []})
    with pytest.raises(DataError, match="has no rows"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        ("./nowhere", {}, "no file or folder './nowhere'"),
        ("", {}, "neither package:NAME"),
        ("a b", {}, "neither package:NAME"),
        ("package:nope", {}, "choose one of"),
        ("package:minilm", {}, "holds a model, a table was asked for"),
        (".", {"revision": "main"}, "only Hugging Face ids have revisions"),
        (".", {"text_columns": ["a", "b", "c"]}, "one or two columns"),
    ],
)
def test_strings_that_name_no_table(path: str, options: dict, match: str) -> None:
    with pytest.raises(DataError, match=match):
        _load(path, **options)


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=r"expected a folder with config.json"):
        resolve_model("model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_model("model") == "model" and resolve_model(str(tmp_path / "model")) == str(tmp_path / "model")
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert resolve_model("owner/model-1.5", "v2") == "owner/model-1.5"
    with pytest.raises(DataError, match="only Hugging Face ids have revisions"):
        resolve_model("model", "v2")


def test_load_dataset_reads_the_hub_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """load_dataset treats a local folder as it treats a repository of the hub; class names survive."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    (tmp_path / "repo").mkdir()
    _class_label(tmp_path / "repo" / "train.parquet", ["no", "yes"], [1, 0, 1])
    table = read_hub(str(tmp_path / "repo"), split="train", columns=["label"])
    assert table.column("label").to_pylist() == [1, 0, 1]
    assert datasets.Features.from_arrow_schema(table.schema)["label"].names == ["no", "yes"]
    with pytest.raises(DataError, match=r"split 'test'.*Hugging Face hub"):
        read_hub(str(tmp_path / "repo"), split="test", columns=["label"])
    with pytest.raises(DataError, match=r"no column 'text2': there are (text, label|label, text)"):
        read_hub(str(tmp_path / "repo"), split="train", columns=["text2"])


def test_a_hub_that_cannot_be_reached_says_so() -> None:
    """A process of its own, because the offline switch is read at import."""
    code = (
        "from fedpeft.data.sources import load_table\n"
        "from fedpeft.core.errors import DataError\n"
        "try: load_table('no-such-owner/no-such-data', text_columns=['a'], label_column='b')\n"
        "except DataError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("cannot load split 'train' of 'no-such-owner/no-such-data' from the Hugging Face hub")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif("FEDPEFT_STUDY_DATA" not in os.environ, reason="set FEDPEFT_STUDY_DATA to the folder of study data")
@pytest.mark.parametrize(
    ("name", "columns", "num_rows", "num_labels"),
    [("sst2", ["sentence"], 67349, 2), ("mrpc", ["sentence1", "sentence2"], 3668, 2), ("trec", ["sentence"], 5452, 6)],
)
def test_study_data(name: str, columns: list[str], num_rows: int, num_labels: int) -> None:
    folder = Path(os.environ["FEDPEFT_STUDY_DATA"]) / name
    if not folder.is_dir():
        pytest.skip(f"no {name} there")
    table = _load(folder, text_columns=columns)
    assert len(table) == num_rows and len(table.label_names) == num_labels
    assert all(len(texts) == len(columns) for texts in table.texts)
