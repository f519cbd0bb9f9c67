"""What ran in the simulator runs on devices, unchanged: three of them on loopback, with TLS and keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import carded
import psutil
import pytest
from real_federation import Federation, federation, smaller, write_own_files

from fedpeft.cli.main import main
from fedpeft.engines.deploy.whereabouts import Whereabouts

CARDED = 2
"""The client that computes on an accelerator."""


@pytest.fixture(scope="module")
def done(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation whose run is over, beside the same config's simulation in ``simulated``."""
    folder = tmp_path_factory.mktemp("deployed")
    overrides = smaller([*toy, "task.client_test_fraction=0.2", "evaluate.clients_every=2"])
    files = write_own_files(overrides, folder)
    with federation(folder, files, overrides) as made:
        made.start_server()
        made.start_client(0, "--device", "rpi5_8gb")
        made.start_client(1)
        made.start_client(CARDED, "--accelerator", "cuda", command=[sys.executable, carded.__file__])
        simulation = ["engine.workers=1", "display=none", "report=false", f"run_dir={folder / 'simulated'}"]
        assert main(["simulate", *overrides, *simulation]) == 0
        assert made.wait_until_done() == 0, made.everything()
        yield made


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_adapter_is_the_simulations_bit_for_bit(done: Federation) -> None:
    real, simulated = (done.folder / name / "adapter" for name in ("run", "simulated"))
    names = sorted(path.name for path in simulated.iterdir())
    assert names == sorted(path.name for path in real.iterdir())
    for name in (name for name in names if name.endswith(".safetensors")):
        assert (real / name).read_bytes() == (simulated / name).read_bytes()


def test_the_record_is_the_simulations_but_for_what_is_measured(done: Federation) -> None:
    for real, simulated in zip(*(lines(done.folder / n / "rounds.jsonl") for n in ("run", "simulated")), strict=True):
        for name in ("round", "cohort_size", "num_replies", "dropped", "train_loss", "eval", "eval_dropped"):
            assert real[name] == simulated[name], name
        assert abs(int(str(real["bytes_up"])) - int(str(simulated["bytes_up"]))) < 300


def test_devices_tell_what_it_took_and_predictions_stand_beside(done: Federation) -> None:
    rows = lines(done.run_dir / "clients.jsonl")
    assert {(row["round"], row["client_id"]) for row in rows} == {(r, c) for r in (1, 2, 3) for c in range(3)}
    for row in rows:
        measured = row["virtual_s"]
        assert isinstance(measured, dict)
        assert measured["compute"] > 0
        assert measured["up"] > 0
        if row["client_id"] == CARDED:
            assert row["peak_memory_mb"] == carded.RESERVED_BYTES / 2**20
        else:
            assert 100 < float(str(row["peak_memory_mb"])) < 4000
        assert ("predicted_s" in row) == (row["client_id"] == 0)
    assert next(row for row in rows if row["client_id"] == 0)["device"] == "rpi5_8gb"


def test_forks_inherit_a_model_and_a_card_keeps_its_own(done: Federation) -> None:
    for number in range(3):
        assert ("model and data are ready" in done.log(f"client-{number}")) == (number != CARDED)
        assert done.log(f"client-{number}").count("training") == 3


def test_a_person_sees_measured_seconds_and_the_comparison(done: Federation) -> None:
    report, log = (done.run_dir / "report.html").read_text(), done.log("server")
    assert "Predicted / measured" in report
    assert "Measured time" in report
    assert "simulated" not in log
    assert "waiting for devices" in log or "round 1/3" in log
    assert "Traceback" not in done.everything()


def test_texts_never_leave_their_device(done: Federation) -> None:
    """No word of a client's file is in anything that the server's side wrote, its database included."""
    rows = [json.loads(line)["text"] for line in done.files[0].read_text().splitlines()]
    written = b"".join(
        path.read_bytes() for root in (done.state, done.run_dir) for path in root.rglob("*") if path.is_file()
    )
    assert not [text for text in rows if text.encode() in written]


def test_nothing_of_the_server_is_left_behind(done: Federation) -> None:
    port = str(done.port)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if port in " ".join(p.info["cmdline"] or [])]
    assert [line for line in left if "flower-super" in " ".join(line) and "node" not in " ".join(line)] == []
    # Where it was is kept, for whoever asks for its status or registers another device.
    last = Whereabouts.read(done.state)
    assert last is not None and not last.alive
    assert last.run_dir == str(done.run_dir)
