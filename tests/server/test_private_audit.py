"""A resumed run forgets no release and goes on under the promise that it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedpeft import config as cfg
from fedpeft.cli.main import main
from fedpeft.core.errors import PrivacyError
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.ledger import LEDGER, POPULATION, Ledger, client_unit
from fedpeft.privacy.statement import STATEMENT
from fedpeft.server.checkpoint import Checkpoint
from fedpeft.server.privacy import Books, check_ledgers, promise, write_promise

Make = Callable[..., dict[str, Any]]
CLIENT = ("privacy=client_level", "privacy.noise_multiplier=2", "privacy.epsilon=null", "privacy.delta=0.1")
LOCAL = ("privacy=local", "privacy.noise_multiplier=2", "privacy.epsilon=null", "privacy.delta=0.1")


def runtime(config: dict[str, Any]) -> Any:
    return SimpleNamespace(config=config, privacy=cfg.build(config["privacy"]), initial={})


def client_ledger(config: dict[str, Any], client_id: int) -> Path:
    return Path(config["run_dir"]) / "checkpoints" / "clients" / f"client-{client_id:06d}" / LEDGER


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def done(config: dict[str, Any], rounds: int) -> Path:
    """Leave what a run leaves that was killed after so many rounds, before its first checkpoint."""
    here, run_dir = runtime(config), Path(config["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True)
    promised = promise(here, {})
    assert promised is not None
    release = Release(
        noise_multiplier=promised.noise_multiplier,
        sampling_rate=promised.sampling_rate,
        kind="full" if here.privacy.name == "local" else "poisson",
    )
    numbers = range(1, rounds + 1)
    if here.privacy.name == "client_level":
        books = {run_dir / LEDGER: POPULATION}
    else:
        books = {client_ledger(config, client_id): client_unit(client_id) for client_id in (3, 5)}
        took_part = [{"round": r, "client_id": c, "outcome": "ok"} for r in numbers for c in (3, 5)]
        write_rows(run_dir / "clients.jsonl", [*took_part, {"round": 1, "client_id": 4, "outcome": "lost"}])
    for path, unit in books.items():
        with Ledger(path) as ledger:
            for server_round in numbers:
                ledger.book(release, unit=unit, server_round=server_round, run_id=config["run_id"], dataset="d")
    spent = epsilon([release] * rounds, promised.delta)
    write_promise(run_dir, promised, Books(here, None).terms, spent, rounds * len(books))
    write_rows(run_dir / "rounds.jsonl", [{"round": number} for number in numbers])
    return next(iter(books))


def cut(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("level", [CLIENT, LOCAL], ids=["client", "local"])
@pytest.mark.parametrize(("how", "words"), [("gone", "cannot be opened"), ("cut", "lacks round 2 of")])
def test_lines_that_no_checkpoint_holds_are_missed_all_the_same(
    toy_config: Make, level: tuple[str, ...], how: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(*level)
    path = done(config, 2)
    check_ledgers(config, None, finished=False)
    assert main(["privacy", "ledger", config["run_dir"]]) == 0
    cut(path, how)
    with pytest.raises(PrivacyError, match=words) as caught:
        check_ledgers(config, None, finished=False)
    assert str(path) in str(caught.value)
    capsys.readouterr()
    assert main(["privacy", "ledger", config["run_dir"]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_releases_are_counted_where_tables_are_gone(toy_config: Make) -> None:
    config = toy_config(*LOCAL)
    path = done(config, 2)
    (path.parents[3] / "clients.jsonl").unlink()
    check_ledgers(config, None, finished=False)
    path.unlink()
    with pytest.raises(PrivacyError, match=r"hold 2 releases, privacy\.json counts 4"):
        check_ledgers(config, None, finished=False)


def test_a_ledger_that_was_written_anew_comes_to_less(toy_config: Make) -> None:
    config = toy_config(*CLIENT)
    path = done(config, 2)
    path.unlink()
    with Ledger(path) as ledger:
        for number in (1, 2):
            weak = Release(noise_multiplier=50.0, sampling_rate=0.5)
            ledger.book(weak, unit=POPULATION, server_round=number, run_id=config["run_id"], dataset="d")
    with pytest.raises(PrivacyError, match=r"comes to epsilon .*privacy\.json says that"):
        check_ledgers(config, None, finished=False)


def test_clients_that_keep_their_ledgers_themselves_are_not_asked_for_them(toy_config: Make) -> None:
    config = toy_config(*LOCAL)
    done(config, 2)
    for client_id in (3, 5):
        client_ledger(config, client_id).unlink()
    path = Path(config["run_dir"]) / STATEMENT
    path.write_text(json.dumps({**json.loads(path.read_text()), "spent": None, "releases": 0}))
    real = {**config, "engine": {"_target_": "fedpeft.engines.deploy.engine.Deploy"}}
    check_ledgers(real, None, finished=False)
    with pytest.raises(PrivacyError, match="cannot be opened"):
        check_ledgers(config, None, finished=False)


# -- the promise -------------------------------------------------------------------------------------------------------

CHANGES = [
    ("privacy.epsilon", 80.0, "privacy.epsilon=8, config.yaml says 80.0"),
    ("privacy.delta", 0.15, "privacy.delta=0.1, config.yaml says 0.15"),
    ("privacy.noise_multiplier", 1.0, "privacy.noise_multiplier=20, config.yaml says 1.0"),
    ("cohort_size", 5, "cohort_size="),
    ("num_clients", 7, "num_clients="),
]


@pytest.mark.parametrize("kept", ["checkpoint", "privacy.json"])
@pytest.mark.parametrize(("setting", "value", "words"), CHANGES)
def test_a_stored_budget_cannot_be_edited(toy_config: Make, kept: str, setting: str, value: Any, words: str) -> None:
    config = toy_config("privacy=client_level", "privacy.epsilon=8", "privacy.noise_multiplier=20", "privacy.delta=0.1")
    done(config, 1)
    run_dir, checkpoint = Path(config["run_dir"]), None
    if kept == "checkpoint":
        state = Books(runtime(config), None).state(1)
        checkpoint = Checkpoint(server_round=1, tensors={}, state=state, virtual_clock_s=0.0, model_hash="m")
        (run_dir / STATEMENT).unlink()
    edited: dict[str, Any] = json.loads(json.dumps(config))
    *parents, last = setting.split(".")
    (edited[parents[0]] if parents else edited)[last] = value
    with pytest.raises(PrivacyError) as caught:
        check_ledgers(edited, checkpoint, finished=False)
    assert words in str(caught.value)
    assert "put it back" in str(caught.value)
    without = {**config, "privacy": {"name": "none"}}
    with pytest.raises(PrivacyError, match=r"config\.yaml says null"):
        check_ledgers(without, checkpoint, finished=False)


def test_noise_that_clients_fitted_to_the_rounds_cannot_be_fitted_to_more(toy_config: Make) -> None:
    """With noise of one's own a run may be continued."""
    config = toy_config("privacy=local", "privacy.epsilon=100", "privacy.delta=0.1")
    done(config, 1)
    check_ledgers(config, None, finished=False)
    with pytest.raises(PrivacyError, match=r"fitted its clients' noise to rounds=3, got 5.*start a new run"):
        check_ledgers({**config, "rounds": 5}, None, finished=False)
    free = toy_config(*LOCAL, name="free")
    done(free, 1)
    check_ledgers({**free, "rounds": 5}, None, finished=False)


@pytest.mark.parametrize("level", [CLIENT, LOCAL], ids=["client", "local"])
def test_a_resumed_promise_counts_what_was_lost_and_is_done_again(toy_config: Make, level: tuple[str, ...]) -> None:
    """Two of three rounds are in the ledger, and none in a checkpoint: five releases in the end."""
    config = toy_config(*level)
    new = promise(runtime(config), {})
    assert new is not None
    done(config, 2)
    resumed = promise(runtime(config), {})
    assert resumed is not None
    kind = "full" if level is LOCAL else "poisson"
    five = Release(noise_multiplier=new.noise_multiplier, sampling_rate=new.sampling_rate, steps=5, kind=kind)
    assert (resumed.epsilon, resumed.steps) == (epsilon([five], 0.1), 5)
    assert resumed.epsilon > new.epsilon
    checkpointed = promise(runtime(config), {"books.round": 2})
    assert checkpointed == new
