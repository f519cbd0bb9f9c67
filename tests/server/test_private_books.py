"""What a run promises and has spent, and which ledgers it may go on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedpeft import config as cfg
from fedpeft.core.errors import BudgetError, PrivacyError
from fedpeft.core.types import Tensors
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.ledger import LEDGER, POPULATION, Ledger, client_unit
from fedpeft.server.checkpoint import Checkpoint
from fedpeft.server.privacy import HEADS, Books, check_ledgers, private_rounds, promise

Make = Callable[..., dict[str, Any]]
RELEASE = Release(noise_multiplier=2.0, sampling_rate=0.5, steps=3)
PRIVATE = ("privacy=client_level", "privacy.noise_multiplier=2", "privacy.delta=0.1", "cohort_size=3")


def runtime(config: dict[str, Any]) -> Any:
    """Return the little of a runtime that books ask for."""
    node = config["privacy"]
    initial: Tensors = {}
    return SimpleNamespace(
        config=config,
        privacy=cfg.build(node) if "_target_" in node else None,
        identity=SimpleNamespace(run_id="r"),
        initial=initial,
    )


def book(path: Path, unit: str, count: int) -> None:
    with Ledger(path) as ledger:
        for server_round in range(1, count + 1):
            ledger.book(RELEASE, unit=unit, server_round=server_round, run_id="r", dataset="d")


def checkpoint(**state: str | float) -> Checkpoint:
    return Checkpoint(server_round=2, tensors={}, state=state, virtual_clock_s=0.0, model_hash="m")


def client_folder(config: dict[str, Any], client_id: int) -> Path:
    return Path(config["run_dir"]) / "checkpoints" / "clients" / f"client-{client_id:06d}"


# -- what has been spent -----------------------------------------------------------------------------------------------


def test_clients_books_are_added_up_and_the_largest_counts(toy_config: Make) -> None:
    """Two clients with two releases and one: three in all, and epsilon of two."""
    config = toy_config("privacy=example_level", "privacy.delta=1e-3")
    books = Books(runtime(config), None)
    assert books.spent() == (None, 0)
    for client_id, count in ((3, 2), (5, 1)):
        book(client_folder(config, client_id) / LEDGER, client_unit(client_id), count)
    assert books.spent() == (epsilon([RELEASE] * 2, 1e-3), 3)
    book(client_folder(config, 5) / LEDGER, client_unit(5), 2)
    assert books.spent() == (epsilon([RELEASE] * 3, 1e-3), 5)
    heads = json.loads(str(books.state(2)[HEADS]))
    assert heads == {f"client-{c:06d}": Ledger(client_folder(config, c) / LEDGER, read_only=True).head for c in (3, 5)}


def test_a_run_without_privacy_keeps_no_books(toy_config: Make) -> None:
    config = toy_config()
    book(client_folder(config, 3) / LEDGER, client_unit(3), 1)
    books = Books(runtime(config), None)
    assert (books.spent(), books.state(2)) == ((None, 0), {HEADS: "{}"})
    assert promise(runtime(config), {}) is None
    with private_rounds(runtime(config)) as rounds:
        assert rounds is None


def test_the_servers_ledger_is_one_processs_at_a_time(toy_config: Make) -> None:
    here = runtime(toy_config(*PRIVATE, "privacy.epsilon=null"))
    with private_rounds(here) as rounds:
        assert rounds is not None
        assert Books(here, rounds).spent() == (0.0, 0)
        with pytest.raises(PrivacyError, match="in use by another process"), private_rounds(here):
            raise AssertionError("two may spend the same budget")
    with private_rounds(here):
        pass


def test_a_promise_keeps_the_noise_that_the_run_began_with(toy_config: Make) -> None:
    here = runtime(toy_config(*PRIVATE, "privacy.epsilon=null"))
    new, resumed = promise(here, {}), promise(here, {"privacy.noise_multiplier": 7.5})
    assert new is not None
    assert resumed is not None
    assert (new.noise_multiplier, resumed.noise_multiplier) == (2.0, 7.5)
    assert resumed.epsilon < new.epsilon


# -- which ledgers a run may go on from --------------------------------------------------------------------------------


def test_a_new_run_needs_no_ledger(toy_config: Make) -> None:
    for overrides in ((), (*PRIVATE, "privacy.epsilon=3")):
        config = toy_config(*overrides)
        check_ledgers(config, None, finished=False)
        assert not Path(config["run_dir"]).exists(), "looking made none"


def test_a_resumed_run_needs_the_ledger_that_it_had(toy_config: Make) -> None:
    config = toy_config(*PRIVATE, "privacy.epsilon=null")
    path = Path(config["run_dir"]) / LEDGER
    book(path, POPULATION, 2)
    state = {"privacy.ledger_head": Ledger(path, read_only=True).head, "privacy.noise_multiplier": 2.0}
    found = checkpoint(**state, **{"privacy.clip_norm": 1.0})
    check_ledgers(config, found, finished=True)
    book(path, POPULATION, 1)
    check_ledgers(config, found, finished=True)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(PrivacyError, match="lacks release"):
        check_ledgers(config, found, finished=True)
    path.unlink()
    with pytest.raises(PrivacyError, match="cannot be opened"):
        check_ledgers(config, found, finished=True)
    assert not path.exists(), "looking made none"


def test_a_spent_budget_ends_what_is_finished_and_lets_a_killed_run_save_its_model(toy_config: Make) -> None:
    config = toy_config(*PRIVATE, f"privacy.epsilon={epsilon([RELEASE], 0.1)}")
    path = Path(config["run_dir"]) / LEDGER
    book(path, POPULATION, 1)
    state = {"privacy.ledger_head": Ledger(path, read_only=True).head, "privacy.noise_multiplier": 2.0}
    found = checkpoint(**state, **{"privacy.clip_norm": 1.0})
    check_ledgers(config, found, finished=False)
    for where, finished in ((found, True), (None, False)):
        with pytest.raises(BudgetError, match="budget spent: population"):
            check_ledgers(config, where, finished=finished)


@pytest.mark.parametrize("how", ["cut", "gone", "edited"])
def test_clients_ledgers_must_be_what_they_were(toy_config: Make, how: str) -> None:
    config = toy_config("privacy=local", "privacy.delta=0.01", "privacy.epsilon=100")
    path = client_folder(config, 3) / LEDGER
    book(path, client_unit(3), 2)
    found = checkpoint(**Books(runtime(config), None).state(2))  # type: ignore[arg-type]
    check_ledgers(config, found, finished=False)
    text = path.read_bytes()
    if how == "cut":
        path.write_bytes(text.splitlines(keepends=True)[0])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(text.replace(b'"steps":3', b'"steps":1', 1))
    with pytest.raises(PrivacyError, match=str(path)):
        check_ledgers(config, found, finished=False)
    if how == "edited":
        with pytest.raises(PrivacyError, match="was edited"):
            check_ledgers(config, None, finished=False)
