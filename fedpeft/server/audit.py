"""Ledgers held against a run's other files: what these say was released, a ledger must hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import CheckpointError, PrivacyError
from fedpeft.privacy.entries import BEGINNING
from fedpeft.privacy.ledger import LEDGER, POPULATION, Ledger, client_unit
from fedpeft.privacy.statement import STATEMENT, TERMS, counted
from fedpeft.server.checkpoint import load_checkpoint
from fedpeft.server.files import read_lines
from fedpeft.server.terms import HEADS, LEDGER_HEAD, read_promise

_SLACK = 1 - 1e-6
"""Another machine's last bits of epsilon are no missing release."""


def audit_run(run_dir: Path) -> None:
    """Check the ledgers of a run directory by itself: without a config, at rest or running.

    Raises:
        PrivacyError: a ledger was edited, or lacks what ``privacy.json``, the tables or the newest checkpoint have.
    """
    promise = read_promise(run_dir)
    terms = promise.get(TERMS, {})
    try:
        checkpoint = load_checkpoint(run_dir / "checkpoints")
    except CheckpointError:
        # Whoever resumes is told; what the other files say stands.
        checkpoint = None
    state = checkpoint.state if checkpoint else {}
    if LEDGER_HEAD in state:
        Ledger(run_dir / LEDGER, read_only=True).require_head(str(state[LEDGER_HEAD]))
    check_heads(run_dir, state)
    if terms:
        on_devices = promise.get("spent") is None
        audit(run_dir, level=str(terms["privacy"]), run_id=str(terms["run_id"]), on_devices=on_devices)


def check_heads(run_dir: Path, state: Mapping[str, Any]) -> None:
    """Refuse clients' ledgers that were edited, or that lack the last line that a checkpoint knows.

    Args:
        run_dir: the run.
        state: of its newest checkpoint, {} without one.

    Raises:
        PrivacyError: says which ledger, and what is wrong with it.
    """
    folder = run_dir / "checkpoints" / "clients"
    heads = dict.fromkeys((path.parent.name for path in folder.glob(f"client-*/{LEDGER}")), BEGINNING)
    for name, head in {**heads, **json.loads(str(state.get(HEADS, "{}")))}.items():
        Ledger(folder / name / LEDGER, read_only=True).require_head(head)


def audit(run_dir: Path, *, level: str, run_id: str, on_devices: bool) -> None:
    """Refuse ledgers that lack a release which ``privacy.json`` or the run's tables know of; no checkpoint is needed.

    Args:
        run_dir: the run.
        level: name of its level of privacy.
        run_id: its id.
        on_devices: whether clients keep their ledgers elsewhere.

    Raises:
        PrivacyError: says which ledger lacks what.
    """
    promise = read_promise(run_dir)
    if level == "client_level":
        ledgers = _audit_population(run_dir, promise, run_id)
    else:
        ledgers = {} if on_devices else _audit_clients(run_dir, run_id)
    held, known = sum(len(one.entries) for one in ledgers.values()), promise.get("releases") or 0
    if not (on_devices and level != "client_level") and held < known:
        raise PrivacyError(
            f"the ledgers of {run_dir} hold {counted(held, 'release')}, {STATEMENT} counts {known:,}: restore the "
            "ledgers of this run, or start a new one"
        )


def _audit_population(run_dir: Path, promise: Mapping[str, Any], run_id: str) -> dict[Path, Ledger]:
    rounds = [row["round"] for row in read_lines(run_dir / "rounds.jsonl")]
    path = run_dir / LEDGER
    if not path.exists() and not rounds and not promise:
        return {}
    ledger = Ledger(path, read_only=True)
    ledger.require_rounds(rounds, unit=POPULATION, run_id=run_id)
    spent = promise.get("spent") or 0.0
    told = math.inf if spent == "inf" else float(spent)
    if told and (found := ledger.epsilon(POPULATION, float(promise["delta"]))) < told * _SLACK:
        raise PrivacyError(
            f"{path} comes to epsilon {found:.4g}, {STATEMENT} says that {told:.4g} was spent: restore the ledger of "
            "this run, or start a new one"
        )
    return {path: ledger}


def _audit_clients(run_dir: Path, run_id: str) -> dict[Path, Ledger]:
    took_part: dict[int, list[int]] = {}
    for row in read_lines(run_dir / "clients.jsonl"):
        if row.get("outcome") == "ok":
            took_part.setdefault(int(row["client_id"]), []).append(row["round"])
    folder = run_dir / "checkpoints" / "clients"
    for client_id, rounds in took_part.items():
        path = folder / f"client-{client_id:06d}" / LEDGER
        Ledger(path, read_only=True).require_rounds(rounds, unit=client_unit(client_id), run_id=run_id)
    return {path: Ledger(path, read_only=True) for path in sorted(folder.glob(f"client-*/{LEDGER}"))}
