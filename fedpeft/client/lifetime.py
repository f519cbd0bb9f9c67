"""What all the runs on one device together may spend of the privacy of its examples."""

from __future__ import annotations

from pathlib import Path

from fedpeft.client.own import OwnData
from fedpeft.client.state import PersonalState
from fedpeft.core.errors import BudgetError
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.ledger import LEDGER, Ledger

RUNS = "runs"
"""Folder, in a device's state folder, with what it keeps of each run."""


def refuse_beyond(own: OwnData | None, personal: PersonalState, planned: Release) -> None:
    """Refuse a release with which the runs of a device together would pass what its operator allows.

    A run's own ledger keeps the run to its budget, which is within the operator's. A further run adds to what the
    earlier ones have let out of the same examples: then all their ledgers are composed, whatever client number the
    device had, and whatever has changed of its file since.

    Args:
        own: the device; None, and one whose operator demands nothing, refuse nothing.
        personal: the client's folder of this run.
        planned: what would be let out next.

    Raises:
        BudgetError: says what earlier runs have come to.
        PrivacyError: one of the ledgers was edited.
    """
    if own is None or own.max_epsilon is None or own.state_dir is None:
        return
    here = personal.folder / LEDGER
    paths = sorted(Path(own.state_dir, RUNS).glob(f"*/client-*/{LEDGER}"))
    earlier = [one for path in paths if path != here for one in _releases(path)]
    if not earlier:
        return
    held = [*earlier, *(_releases(here) if here.exists() else [])]
    after = epsilon([*held, planned], own.max_delta)
    if after > own.max_epsilon:
        raise BudgetError(
            f"this device's privacy budget for all runs is spent: they have come to epsilon "
            f"{epsilon(held, own.max_delta):.4g}, this round would make it {after:.4g}, --require-epsilon is "
            f"{own.max_epsilon:g}"
        )


def _releases(path: Path) -> list[Release]:
    return [entry.release for entry in Ledger(path, read_only=True).entries]
