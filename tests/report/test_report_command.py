from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.cli.report import main
from fedpeft.core.errors import FedPeftError


def test_it_prints_where_the_page_lies(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "-o", str(tmp_path / "page.html")]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == tmp_path / "page.html"
    assert printed.read_text().startswith("<!doctype html>")


def test_json_prints_summaries_and_writes_nothing(
    run_dir: Path, shared_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir), str(shared_run), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["run_dir"] == str(run_dir)
    assert second["final"] == first["final"]
    assert not (run_dir / "report.html").exists()


def test_errors_reach_the_caller_as_ours(tmp_path: Path) -> None:
    with pytest.raises(FedPeftError, match="is not a directory"):
        main([str(tmp_path / "absent")])


def test_an_output_without_a_name_is_refused(run_dir: Path) -> None:
    with pytest.raises(FedPeftError, match="choose another place with -o"):
        main([str(run_dir), "-o", ""])


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "fedpeft report runs/a runs/b" in capsys.readouterr().out


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = "import sys, fedpeft.cli.report, fedpeft.cli.display; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "jinja2", "yaml", "torch", "flwr", "pandas", "tensorboard", "wandb", "rich.live"} & set(
        loaded
    )
