"""``fedpeft privacy`` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedpeft.cli.main import main
from fedpeft.privacy.accounting import Release
from fedpeft.privacy.ledger import LEDGER, POPULATION, Ledger, client_unit
from fedpeft.privacy.statement import STATEMENT, PrivacyStatement

EPSILON = "privacy epsilon --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 --delta 1e-5"
CALIBRATE = "privacy calibrate --epsilon 2 --sampling-rate 0.01 --steps 1000 --delta 1e-5"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with a ledger of its own and one of client 3."""
    with Ledger(tmp_path / LEDGER) as ledger:
        for server_round in range(1, 101):
            release = Release(noise_multiplier=1.0, sampling_rate=0.1)
            ledger.book(release, unit=POPULATION, server_round=server_round, run_id="r", dataset="d")
    with Ledger(tmp_path / "clients" / "client-3" / LEDGER) as ledger:
        ledger.book(Release(noise_multiplier=2.0), unit=client_unit(3), server_round=5, run_id="r", dataset="d")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], command: str) -> Any:
    assert main([*command.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_epsilon_says_the_number_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(EPSILON.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "noise multiplier  1"
    assert lines[1].startswith("epsilon           1.82")
    assert lines[1].endswith(" by PLD (2.1014 by RDP)")
    assert lines[3:] == [
        "releases          1,000, each of a Poisson sample at rate 0.01 (independent coins)",
        "adjacency         add or remove one unit: one example or one client, whichever is drawn, clipped and noised",
        "meaning           with or without the unit, the chance of any outcome differs by at most a factor"
        " exp(epsilon), plus delta",
    ]
    found = answer(capsys, EPSILON)
    assert found["epsilon"] == pytest.approx(1.8282, rel=1e-3)
    assert found["epsilon_rdp"] == pytest.approx(2.1014, rel=1e-3)
    assert {found["accountant"], found["steps"], found["delta"]} == {"pld", 1000, 1e-5}


def test_everyone_in_one_step_is_the_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    command = "privacy epsilon --sampling-rate 1 --noise-multiplier 1 --steps 1 --delta 1e-5"
    assert answer(capsys, command)["epsilon"] == pytest.approx(4.37718, abs=1e-5)
    assert main(command.split()) == 0
    assert "releases          1, everyone in each" in capsys.readouterr().out


def test_no_noise_is_infinite_in_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = "privacy epsilon --sampling-rate 0.1 --noise-multiplier 0 --steps 1 --delta 1e-5"
    assert answer(capsys, command)["epsilon"] == "inf"
    assert main(command.split()) == 0
    assert "infinite (no privacy) by PLD" in capsys.readouterr().out


def test_the_smaller_bound_is_told_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """At a delta below the mass that PLD cuts off its epsilon is infinite, RDP's is not."""
    command = EPSILON.replace("1e-5", "1e-20")
    found = answer(capsys, command)
    assert (found["accountant"], found["epsilon"]) == ("rdp", found["epsilon_rdp"])
    assert found["epsilon"] == pytest.approx(6.8127, abs=1e-4)
    assert main(command.split()) == 0
    assert "6.8127 by RDP (PLD's bound is no smaller here)" in capsys.readouterr().out


def test_calibrate_says_the_noise_and_what_it_spends(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, CALIBRATE)
    assert found["noise_multiplier"] == pytest.approx(0.9591, abs=2e-4)
    assert found["noise_multiplier_rdp"] == 1.023
    assert 1.99 < found["epsilon"] <= found["target_epsilon"] == 2
    assert main(CALIBRATE.split()) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"noise multiplier  {found['noise_multiplier']} for epsilon 2 (by RDP it would be 1.023)"
    assert second.startswith(("epsilon           1.99", "epsilon           2.0000 by PLD"))


def test_ledger_says_what_was_spent_on_whom(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, f"privacy ledger {run_dir} --delta 1e-5")
    assert [Path(one["file"]).parent.name for one in found["ledgers"]] == [run_dir.name, "client-3"]
    everyone, client = (one["units"][0] for one in found["ledgers"])
    assert (everyone["unit"], everyone["steps"], everyone["first_round"], everyone["last_round"]) == (
        *("population", 100, 1, 100),
    )
    assert client["epsilon"] == pytest.approx(1.99309, abs=1e-5)
    assert main(["privacy", "ledger", str(run_dir / LEDGER), "--delta", "1e-5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run_dir / LEDGER}: 100 releases, every line as it was booked"
    assert lines[1].endswith("after 100 steps, rounds 1 to 100")
    assert lines[2:] == ["epsilon at delta 1e-05"]


def test_ledger_takes_the_delta_of_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, f"privacy ledger {run_dir}")["delta"] == 1e-5
    statement = PrivacyStatement(
        unit="one client",
        adjacency="add or remove one client",
        mechanism="m",
        sampling="s",
        noise_multiplier=1.0,
        clip_norm=1.0,
        sampling_rate=0.1,
        steps=100,
        delta=3e-4,
        epsilon=6.0,
        accountant="pld",
        trust="t",
    )
    (run_dir / STATEMENT).write_text(json.dumps(statement.to_dict()))
    for path in (run_dir, run_dir / LEDGER):
        assert answer(capsys, f"privacy ledger {path}")["delta"] == 3e-4
    for text in ("{", "[]", "{}"):
        (run_dir / STATEMENT).write_text(text)
        assert main(["privacy", "ledger", str(run_dir)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_edited_ledger_is_named_with_its_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run_dir / LEDGER
    file.write_text(file.read_text().replace('"round":7,', '"round":8,'))
    assert main(["privacy", "ledger", str(run_dir)]) == 1
    said = capsys.readouterr()
    assert said.err == (
        f"fedpeft: line 7 of {file} was edited: its content does not have its hash (restore the ledger from a copy, or "
        "start a new run)\n"
    )
    assert said.out == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (EPSILON + " --delta 0", "delta must be in (0, 1), got 0.0"),
        (EPSILON + " --sampling-rate 2", "sampling_rate must be in (0, 1], got 2.0"),
        (EPSILON + " --noise-multiplier -1", "noise_multiplier must be a finite number of at least 0, got -1.0"),
        (EPSILON + " --noise-multiplier nan", "noise_multiplier must be a finite number of at least 0, got nan"),
        (EPSILON + " --steps 0", "steps must be a whole number of at least 1, got 0"),
        (CALIBRATE + " --epsilon 0", "epsilon must be a finite number above 0, got 0.0"),
        (CALIBRATE + " --epsilon 1e9", "ask for a smaller epsilon"),
        (CALIBRATE + " --epsilon 1e-9 --delta 1e-300", "allow a larger epsilon or delta, or plan fewer steps"),
        ("privacy ledger nowhere", "there is no privacy ledger in nowhere: name a run directory or a ledger.jsonl"),
        (EPSILON + " --steps many", "argument --steps: invalid int value: 'many'"),
        ("privacy epsilon --delta 1e-5", "the following arguments are required: --noise-multiplier"),
        ("privacy gdp", "argument epsilon|calibrate|ledger: invalid choice: 'gdp'"),
    ],
)
def test_a_mistake_takes_one_line_and_exit_code_2(
    command: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(command.split())
    except SystemExit as error:
        code = error.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("fedpeft: ")
    assert said in lines[0]


def test_no_command_of_it_loads_torch_and_help_loads_no_scipy(run_dir: Path) -> None:
    def loaded(*commands: str) -> set[str]:
        calls = "\n".join(f"run({command!r})" for command in commands)
        code = f"import sys\nfrom fedpeft.cli.main import main\n{HELPER}\n{calls}\nprint(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stderr.split())

    assert not {"scipy", "numpy", "torch", "dp_accounting"} & loaded("privacy --help", "privacy epsilon --help")
    assert not {"torch", "flwr", "opacus"} & loaded(EPSILON, CALIBRATE, f"privacy ledger {run_dir}")


HELPER = """
def run(command):
    try:
        main(command.split())
    except SystemExit:
        pass
"""
