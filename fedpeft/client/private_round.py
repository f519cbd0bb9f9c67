"""A client's round under example-level privacy: plan, admission, ledger, training, and what may be told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.client.lifetime import refuse_beyond
from fedpeft.client.own import HeldElsewhere
from fedpeft.client.private_training import admit, train_private
from fedpeft.client.pulls import Pulls
from fedpeft.client.state import PersonalState
from fedpeft.client.trainer import TrainResult
from fedpeft.core.errors import BudgetError, ConfigError, WireError
from fedpeft.core.orders import Orders
from fedpeft.core.types import Tensors
from fedpeft.core.wire import NUM_EXAMPLES
from fedpeft.privacy.client_level import ClientLevel
from fedpeft.privacy.example_level import ExampleLevel, ExampleLevelRun
from fedpeft.privacy.example_promise import promise_for_all, promise_unseen
from fedpeft.privacy.ledger import LEDGER, Ledger, client_unit
from fedpeft.privacy.local import Local, LocalRun
from fedpeft.privacy.statement import PrivacyStatement

if TYPE_CHECKING:
    import torch

    from fedpeft.client.runtime import Runtime

TOLD = ("train-steps", "train-cpu-s", "adapter-bytes", "head-bytes")
"""Metrics that do not depend on examples, but for the time that they take to compute with."""


def private_round(
    runtime: Runtime,
    level: ExampleLevel,
    client_id: int,
    server_round: int,
    personal: PersonalState,
    orders: Orders,
    trained: Sequence[str],
    live: Sequence[torch.Tensor],
    pulls: Pulls | None,
) -> TrainResult:
    """Train a client's loaded model by DP-SGD; the release is in its ledger before the first step.

    Args:
        runtime: model, data and settings.
        level: what is promised.
        client_id: the client.
        server_round: the round.
        personal: the client's own folder, in which its ledger is.
        orders: what the server ordered.
        trained: keys of the shared tensors that train.
        live: what the optimiser updates.
        pulls: what else pulls on the gradients.

    Raises:
        PrivacyError: the self-test fails, the budget is spent, or the ledger was edited.
        ConfigError: delta is not below one over the client's examples, or no noise fits the budget.
    """
    rows, _ = runtime.client_rows(client_id)
    run = plan_for(runtime, level, len(rows))
    takes_part = admitted(runtime, level, orders, trained, rows, live)
    unit = client_unit(client_id)
    with Ledger(personal.folder / LEDGER) as ledger:
        run.check(ledger.releases(unit))
        refuse_beyond(runtime.own, personal, run.next_release)
        ledger.book(
            run.next_release,
            unit=unit,
            server_round=server_round,
            run_id=runtime.identity.run_id,
            dataset=f"{len(rows)} examples",
        )
    return train_private(
        runtime.tunable,
        runtime.examples.task,
        rows,
        runtime.settings,
        run,
        dtype=runtime.dtype,
        flops=runtime.step_flops(orders.rank, frozenset(trained)),
        parameters=live,
        takes_part=takes_part,
        pulls=pulls,
    )


def let_out(
    runtime: Runtime, client_id: int, server_round: int, personal: PersonalState, before: Tensors, after: Tensors
) -> Tensors:
    """Return what may leave of the trained tensors: themselves, or under local privacy noised and in the ledger.

    Args:
        runtime: settings.
        client_id: the client.
        server_round: the round.
        personal: the client's own folder, in which its ledger is.
        before: what goes back, as it was before training.
        after: at least the same tensors after training.

    Raises:
        PrivacyError: the client's budget is spent, or the ledger was edited.
    """
    leaving = {key: after[key] for key in before}
    level = runtime.privacy
    if not isinstance(level, Local):
        return leaving
    run = _local_plan(runtime, level)
    refuse_beyond(runtime.own, personal, run.next_release)
    with Ledger(personal.folder / LEDGER) as ledger:
        run.book(
            ledger,
            client_id,
            server_round=server_round,
            run_id=runtime.identity.run_id,
            dataset=f"{runtime.num_train_examples(client_id)} examples",
        )
    return run.perturb(before, leaving)


def refuse_spent(runtime: Runtime, client_id: int, personal: PersonalState) -> None:
    """Refuse to train where local privacy would not let the result out; `let_out` asks again when it books.

    Args:
        runtime: settings.
        client_id: the client.
        personal: the client's own folder, in which its ledger is.

    Raises:
        BudgetError: the client's budget, or that of its device for all runs, is spent.
        PrivacyError: the ledger was edited.
    """
    if not isinstance(runtime.privacy, Local):
        return
    run, path = _local_plan(runtime, runtime.privacy), personal.folder / LEDGER
    if path.exists():
        run.check(Ledger(path, read_only=True), client_id)
    refuse_beyond(runtime.own, personal, run.next_release)


def _local_plan(runtime: Runtime, level: Local) -> LocalRun:
    return level.plan(rounds=int(runtime.config["rounds"]), num_clients=int(runtime.config["num_clients"]))


def refuse_probe(level: object, orders: Orders) -> None:
    """Refuse to measure anything on a private client's examples: what it would tell has no noise on it.

    Args:
        level: what is promised; levels that trust nobody refuse.
        orders: what the server ordered.

    Raises:
        WireError: check ``privacy``: the orders ask for a measurement.
    """
    if isinstance(level, ExampleLevel | Local) and orders.probe:
        raise WireError(
            "privacy",
            f"probe={orders.probe} would tell without noise what this client's examples are like (choose another "
            "strategy, or privacy=none)",
        )


def refuse_evaluation(level: object) -> None:
    """Refuse to tell how well a model does on a private client's own examples, whoever asks.

    Args:
        level: what is promised; levels that trust nobody refuse.

    Raises:
        WireError: check ``privacy``.
    """
    if isinstance(level, ExampleLevel | Local) and not getattr(level, "tell_evaluations", False):
        raise WireError(
            "privacy",
            "an evaluation would tell without noise how a model does on this client's examples (set "
            "evaluate.clients_every=0, the server has data of its own)",
        )


def plan_for(runtime: Runtime, level: ExampleLevel, num_examples: int) -> ExampleLevelRun:
    """Return what example-level privacy means for a client of so many examples.

    Raises:
        ConfigError: delta is not below one over its examples, no noise fits the budget, or gradient checkpointing is
            wanted with hooks.
    """
    settings = runtime.settings
    if level.mode == "hooks" and settings.gradient_checkpointing:
        raise ConfigError(
            "privacy.mode=hooks cannot see through gradient checkpointing (set privacy.mode=microbatch or "
            "client.gradient_checkpointing=false)"
        )
    return level.plan(
        num_examples=num_examples,
        batch_size=settings.batch_size,
        steps=settings.steps(num_examples),
        rounds=int(runtime.config["rounds"]),
    )


def admitted(
    runtime: Runtime,
    level: ExampleLevel,
    orders: Orders,
    trained: Sequence[str],
    rows: np.ndarray,
    live: Sequence[torch.Tensor],
) -> tuple[bool, ...]:
    """Return which tensors take part in the loss, after the self-test; each set of trained tensors is tested once.

    Raises:
        PrivacyError, ConfigError: see ``private_training.admit``.
    """
    key = (orders.rank, tuple(trained))
    if key not in runtime.admitted:
        runtime.admitted[key] = admit(
            runtime.tunable,
            runtime.examples.task,
            rows,
            live,
            mode=level.mode,
            dtype=runtime.dtype,
            what=f"{type(runtime.method).__name__} on {type(runtime.tunable.model).__name__}",
        )
    return runtime.admitted[key]


def prepare(runtime: Runtime, level: ExampleLevel) -> PrivacyStatement:
    """Refuse at start-up what would fail later, and return what is promised to every client.

    Args:
        runtime: model and data, before any round.
        level: what is promised.

    Raises:
        PrivacyError: the method fails the self-test on this model.
        ConfigError: some client has too many examples for delta, or too few for its budget; on real devices, which
            see to that themselves, that there is no budget.
    """
    steps, rounds = runtime.settings.local_steps, int(runtime.config["rounds"])
    if isinstance(runtime.examples.partition, HeldElsewhere):
        statement = promise_unseen(level, steps=steps * rounds if steps else None)
    else:
        statement = _promise_to_clients(runtime, level)
    tunable = runtime.tunable
    admitted(runtime, level, Orders(), [*tunable.shared], runtime.examples.rows, tunable.trainable)
    return statement


def _promise_to_clients(runtime: Runtime, level: ExampleLevel) -> PrivacyStatement:
    counts = [runtime.num_train_examples(i) for i in range(int(runtime.config["num_clients"]))]
    if not min(counts):
        raise ConfigError(
            f"client {counts.index(0)} has no examples to train on, and privacy does not hide that (set num_clients "
            "lower, or another partition)"
        )
    # Delta is hardest to keep for the largest client.
    try:
        plan_for(runtime, level, max(counts)).check([])
    except BudgetError as error:
        raise ConfigError(f"no client could take part in a single round: {error}") from error
    return promise_for_all(
        level,
        {count: runtime.settings.steps(count) for count in set(counts)},
        batch_size=runtime.settings.batch_size,
        rounds=int(runtime.config["rounds"]),
    )


def told(level: object, metrics: Mapping[str, float | list[float]]) -> dict[str, float | list[float]]:
    """Return what a private client tells of its round: no losses, no scores, and one example, as everybody says.

    Args:
        level: what is promised. With client-level privacy the server is trusted, and is told what the work was.
        metrics: what a client without privacy would tell.

    Example:
        >>> told(ExampleLevel(epsilon=8.0), {"num-examples": 512, "train-loss": 0.7, "train-steps": 16})
        {'num-examples': 1, 'train-steps': 16}
    """
    if level is None:
        return dict(metrics)
    names = (*TOLD, "train-flops") if isinstance(level, ClientLevel) else TOLD
    return {NUM_EXAMPLES: 1, **{name: metrics[name] for name in names if name in metrics}}
