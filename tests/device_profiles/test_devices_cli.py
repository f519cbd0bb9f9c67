"""``fedpeft devices``: facts as tables and as JSON."""

from __future__ import annotations

import json

import pytest

from fedpeft.cli.devices import main
from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.presets import list_profiles, load_profile


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_list_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in list_profiles())
    assert "Mbit/s" in out


def test_a_terminal_of_eighty_columns_cuts_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut cell would end in an ellipsis."""
    monkeypatch.setenv("COLUMNS", "80")
    main(["list"])
    assert main(["show", "jetson_orin_nano_8gb"]) == 0
    out = capsys.readouterr().out
    assert "16384" in out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list_profiles()
    assert rows["rpi4_4gb"]["fp32_gflops"] == 24
    assert rows["phone_low"]["class"] == "phone"


def test_show_has_every_number_with_unit_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "rpi5_8gb"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "compute.achievable_gflops.fp32" in line)
    assert line.split()[1:4] == ["70", "GFLOP/s", "derived"]
    note = next(note for note in out.splitlines() if note.split()[:1] == [line.split()[4]])
    assert "HPL 35.169 GFLOP/s" in note
    assert "https://" in note
    assert "network.rtt_ms" in out


def test_show_as_json_is_the_whole_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "jetson_orin_nano_8gb", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    numbers = data.pop("numbers")
    expected = load_profile("jetson_orin_nano_8gb").to_mapping()
    del expected["provenance"]
    assert data == expected
    assert numbers["network.down_mbps"]["value"] == 184
    assert numbers["network.down_mbps"]["unit"] == "Mbit/s"
    assert numbers["network.down_mbps"]["kind"] == "published"
    assert all(number["kind"] and number["from"] for number in numbers.values())


def test_an_unknown_name_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="did you mean phone_"):
        main(["show", "phone"])


@pytest.mark.parametrize("argv", [["--help"], ["list", "--help"], ["show", "--help"]])
def test_help_exits_well(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    assert "usage: fedpeft devices" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["show"], ["shine"]])
def test_wrong_arguments_exit_with_two(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
