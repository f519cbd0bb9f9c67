"""All runs of a device together keep to what its operator lets out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.client.lifetime import RUNS, refuse_beyond
from fedpeft.client.own import OwnData
from fedpeft.client.state import PersonalState
from fedpeft.core.errors import BudgetError, PrivacyError
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.ledger import LEDGER, Ledger

RELEASE = Release(noise_multiplier=1.0, sampling_rate=0.05, steps=20)
DELTA = 1e-5


def own(folder: Path, max_epsilon: float | None) -> OwnData:
    return OwnData(path=str(folder), client_id=0, state_dir=str(folder), max_epsilon=max_epsilon, max_delta=DELTA)


def personal(folder: Path, run: str, client: int = 0) -> PersonalState:
    return PersonalState(folder / RUNS / run / f"client-{client:06d}")


def book(where: PersonalState, times: int) -> None:
    where.folder.mkdir(parents=True, exist_ok=True)
    with Ledger(where.folder / LEDGER) as ledger:
        for number in range(times):
            ledger.book(RELEASE, unit="client 0", server_round=number + 1, run_id="r", dataset="d")


def spent(releases: int) -> float:
    return epsilon([RELEASE] * releases, DELTA)


def test_a_run_alone_is_its_own_ledgers_to_watch(tmp_path: Path) -> None:
    book(personal(tmp_path, "one"), 5)
    refuse_beyond(own(tmp_path, spent(1)), personal(tmp_path, "one"), RELEASE)


@pytest.mark.parametrize("client", [0, 3])
def test_earlier_runs_count_whatever_number_the_client_had(tmp_path: Path, client: int) -> None:
    book(personal(tmp_path, "earlier", client), 3)
    book(personal(tmp_path, "now"), 2)
    refuse_beyond(own(tmp_path, spent(6) * 1.001), personal(tmp_path, "now"), RELEASE)
    with pytest.raises(BudgetError, match=f"all runs is spent: they have come to epsilon {spent(5):.4g}.*require-eps"):
        refuse_beyond(own(tmp_path, spent(6) * 0.999), personal(tmp_path, "now"), RELEASE)


def test_a_run_that_begins_counts_the_earlier_ones(tmp_path: Path) -> None:
    book(personal(tmp_path, "earlier"), 3)
    with pytest.raises(BudgetError):
        refuse_beyond(own(tmp_path, spent(3)), personal(tmp_path, "new"), RELEASE)


def test_no_demand_and_no_device_refuse_nothing(tmp_path: Path) -> None:
    book(personal(tmp_path, "earlier"), 50)
    refuse_beyond(own(tmp_path, None), personal(tmp_path, "new"), RELEASE)
    refuse_beyond(None, personal(tmp_path, "new"), RELEASE)


def test_an_edited_ledger_of_an_earlier_run_lets_nothing_out(tmp_path: Path) -> None:
    earlier = personal(tmp_path, "earlier")
    book(earlier, 3)
    path = earlier.folder / LEDGER
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(PrivacyError):
        refuse_beyond(own(tmp_path, 100.0), personal(tmp_path, "new"), RELEASE)
