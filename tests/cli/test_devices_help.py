"""Help of ``fedpeft devices`` is light and names options that there are, and a wrong argument takes one line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fedpeft.cli.client_options import client_parser
from fedpeft.cli.main import main


@pytest.mark.parametrize(
    ("command", "words"), [("bench", ("--server HOST:PORT", "examples:")), ("predict", ("method.rank=4", "--fit"))]
)
def test_help_loads_nothing_heavy(command: str, words: tuple[str, ...]) -> None:
    heavy = "{'torch', 'flwr', 'transformers', 'peft', 'hydra', 'rich'}"
    code = (
        "import sys\nfrom fedpeft.cli.devices import main\n"
        f"try: main([{command!r}, '--help'])\nfinally: print(set(sys.modules) & {heavy}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(one in done.stdout for one in words)
    assert done.stderr == "set()\n"


@pytest.mark.parametrize(
    "argv", [["bench", "extra"], ["bench", "--seconds", "many"], ["predct"], ["predict", "--seq-len", "many"]]
)
def test_wrong_arguments_take_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["devices", *argv])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_clients_help_names_an_option_that_bench_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """argparse takes the beginning of an option's name too, and a reader would look for it in vain."""
    monkeypatch.setenv("COLUMNS", "200")
    (named,) = re.findall(r"fedpeft devices bench (--\S+)", client_parser("fedpeft client").format_help())
    with pytest.raises(SystemExit):
        main(["devices", "bench", "--help"])
    assert re.search(rf"{named}\b", capsys.readouterr().out)
