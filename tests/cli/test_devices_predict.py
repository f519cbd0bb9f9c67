"""``fedpeft devices predict``: a table, JSON with the same keys whatever is asked, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpeft.cli.main import main
from fedpeft.device_profiles.presets import list_profiles

KEYS = {
    "model", "method", "strategy", "dtype", "seq_len", "num_steps", "num_labels", "learned", "deadline_s", "fitted",
    "dtype_of_this_machine", "devices",
}  # fmt: skip
ROW = {
    "device", "rank", "batch_size", "checkpointing", "layers", "flops", "bytes_down", "bytes_up", "down_s", "compute_s",
    "up_s", "total_s", "energy_j", "peak_memory_mb", "usable_memory_mb", "fits",
}  # fmt: skip


@pytest.fixture
def asked(toy: list[str]) -> list[str]:
    """The toy run's overrides, without those of its data: none is read."""
    return [one for one in toy if not one.startswith("task.path=")] + ["task.path=/nowhere"]


@pytest.mark.parametrize("more", [[], ["--fit"], ["method=ia3"], ["method=full", "--seq-len", "4"]])
def test_json_has_the_same_keys_whatever_is_asked(
    asked: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [one for one in asked if not (one.startswith("method.") and any(m.startswith("method=") for m in more))]
    assert main(["devices", "predict", "rpi5_8gb", *kept, *more, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() == KEYS
    (row,) = data["devices"]
    assert row.keys() == ROW
    assert row["total_s"] == pytest.approx(row["down_s"] + row["compute_s"] + row["up_s"])
    assert row["fits"] is True and data["fitted"] is ("--fit" in more)
    assert (row["rank"] is None) == any(one.startswith("method=") for one in more)
    assert data["seq_len"] == (4 if "--seq-len" in more else 16)


def test_the_table_has_every_preset_and_fits_eighty_columns(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options may stand anywhere. A cut cell would end in an ellipsis."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["devices", "predict", *asked[:3], "--labels", "3", *asked[3:]]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in list_profiles())
    assert "everywhere: rank 2, batch 8" in out and "3 classes" in out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out


def test_what_does_not_fit_is_marked_and_fitting_shows_choices(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board.yaml"
    text = (Path(__file__).parents[2] / "conf/device_profile/rpi4_4gb.yaml").read_text()
    board.write_text(text.replace("total_mb: 4096", "total_mb: 100"))
    assert main(["devices", "predict", str(board), "rpi5_8gb", *asked]) == 0
    out = capsys.readouterr().out
    assert "*" in out and "--fit" in out
    assert main(["devices", "predict", str(board), "rpi5_8gb", *asked, "--fit"]) == 0
    out = capsys.readouterr().out
    assert "recompute" in out and "nothing fits" in out


@pytest.mark.parametrize(
    ("argv", "lines", "told"),
    [
        (["rpi5"], 1, "did you mean rpi5_8gb"),
        (["rpi5", "phone", "laptop_cpu"], 2, "did you mean"),
        (["laptop_cpu", "method.rnak=4"], 1, "method.rnak"),
        (["laptop_cpu", "method.rank=0", "client.batch_size=0"], 2, ""),
        (["laptop_cpu", "--seq-len", "0", "--labels", "1"], 2, "set --"),
        (["laptop_cpu", "./none.yaml"], 1, "cannot read"),
    ],
)
def test_what_is_wrong_takes_a_line_each(
    argv: list[str], lines: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "predict", *argv]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == lines and all(line.startswith("fedpeft: ") for line in err)
    assert told in err[0]


def test_a_model_that_is_not_there_takes_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["devices", "predict", "laptop_cpu", "model=hub", f"model.path={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json" in line
