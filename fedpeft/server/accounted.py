"""Promises of resumed runs: what ledgers hold counts, also where rounds were lost and are done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedpeft.client.private_round import plan_for
from fedpeft.client.runtime import Runtime
from fedpeft.privacy.accounting import Release, epsilon
from fedpeft.privacy.client_run import ClientLevelRun
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.privacy.ledger import LEDGER, POPULATION, Ledger, client_unit
from fedpeft.privacy.local import Local
from fedpeft.privacy.statement import PrivacyStatement


def of_population(statement: PrivacyStatement, plan: ClientLevelRun, run_dir: Path, remaining: int) -> PrivacyStatement:
    """Return a client-level statement that counts the server's ledger.

    Args:
        statement: what a run promises that begins anew.
        plan: its plan, with the noise that the run began with.
        run_dir: the run.
        remaining: rounds that are still to be done.

    Raises:
        PrivacyError: the ledger was edited.
    """
    path = run_dir / LEDGER
    held = Ledger(path, read_only=True).releases(POPULATION) if path.exists() else []
    return _larger(statement, held, plan.next_release, remaining, plan.rounds, plan.epsilon)


def of_clients(
    statement: PrivacyStatement, runtime: Runtime, level: ExampleLevel | Local, remaining: int
) -> PrivacyStatement:
    """Return a statement that holds for clients with what their ledgers hold, where this machine has those.

    Args:
        statement: what a run promises that begins anew.
        runtime: the run.
        level: what is promised.
        remaining: rounds that are still to be done.

    Raises:
        PrivacyError: a ledger was edited.
    """
    if level.noise_multiplier is None and level.epsilon is not None:
        # Each client stops at its budget, however often rounds are done again.
        return statement
    folder = Path(runtime.config["run_dir"]) / "checkpoints" / "clients"
    rounds = int(runtime.config["rounds"])
    for path in sorted(folder.glob(f"client-*/{LEDGER}")):
        client_id = int(path.parent.name.removeprefix("client-"))
        held = Ledger(path, read_only=True).releases(client_unit(client_id))
        planned = _next_release(runtime, level, client_id)
        statement = _larger(statement, held, planned, remaining, rounds, level.epsilon)
    return statement


def _next_release(runtime: Runtime, level: ExampleLevel | Local, client_id: int) -> Release:
    if isinstance(level, ExampleLevel):
        return plan_for(runtime, level, runtime.num_train_examples(client_id)).next_release
    rounds, num_clients = (int(runtime.config[name]) for name in ("rounds", "num_clients"))
    return level.plan(rounds=rounds, num_clients=num_clients).next_release


def _larger(
    statement: PrivacyStatement,
    held: Sequence[Release],
    planned: Release,
    remaining: int,
    rounds: int,
    budget: float | None,
) -> PrivacyStatement:
    """Return the statement, with what is held and planned as its epsilon where that is more.

    Args:
        statement: as it would be without a ledger.
        held: releases in a ledger.
        planned: each release that is still to come.
        remaining: how many of them.
        rounds: for how many the statement was made.
        budget: what nobody passes, None for no budget.
    """
    every = [*held, *[planned] * remaining]
    if len(every) <= rounds and set(held) <= {planned}:
        return statement
    after = epsilon(every, statement.delta)
    if budget is not None:
        after = min(after, max(budget, epsilon(held, statement.delta)))
    if after <= statement.epsilon:
        return statement
    by_rdp = epsilon(every, statement.delta, accountant="rdp") if budget is None else None
    steps = max(statement.steps or 0, sum(one.steps for one in every))
    return replace(statement, epsilon=after, epsilon_rdp=by_rdp, steps=steps)
