"""Training a client's loaded model in one round, with or without example-level privacy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.client.own import HeldElsewhere
from fedpeft.client.private_round import private_round
from fedpeft.client.pulls import Pulls
from fedpeft.client.sizing import refuse_checkpointing
from fedpeft.client.state import PersonalState
from fedpeft.client.trainer import TrainResult, TrainSettings, train
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.orders import Orders
from fedpeft.core.seeds import derive
from fedpeft.core.types import Tensors
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.privacy.poisson_batches import SeededCoins, pieces, poisson_batches
from fedpeft.tasks.batches import training_batches

if TYPE_CHECKING:
    import torch

    from fedpeft.client.runtime import Runtime


MANY_CLIENTS = 1000
"""Clients beyond which no rows are looked up to tell lengths: each takes some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a client's round gave.

    Attributes:
        tensors: what goes back to the server, encoded.
        result: loss, steps and costs of training.
        metrics: what was measured besides.
    """

    tensors: Tensors
    result: TrainResult
    metrics: Mapping[str, float | list[float]]


def train_seed(seed: int, client_id: int, server_round: int) -> int:
    """Return the seed of a client's batches and dropout in one round."""
    return derive(seed, "train", server_round, client_id) % 2**63


def ordered(settings: TrainSettings, orders: Orders) -> TrainSettings:
    """Return the settings with the batch size and the checkpointing that the server ordered."""
    return replace(
        settings,
        batch_size=orders.batch_size or settings.batch_size,
        gradient_checkpointing=settings.gradient_checkpointing or orders.checkpointing,
    )


def expected_batches(runtime: Runtime, client_id: int, server_round: int, batch_size: int = 0) -> Iterator[np.ndarray]:
    """Return the batches of a client's round, for predictions; under example-level privacy others of the same kind.

    Args:
        runtime: data and settings.
        client_id: the client.
        server_round: the round.
        batch_size: examples a step, 0 for the config's.
    """
    rows, _ = runtime.client_rows(client_id)
    settings = ordered(runtime.settings, Orders(batch_size=batch_size))
    source = np.random.Generator(np.random.PCG64(train_seed(runtime.seed, client_id, server_round)))
    size, steps, lengths = settings.batch_size, settings.steps(len(rows)), runtime.examples.task.lengths
    if not isinstance(runtime.privacy, ExampleLevel):
        return training_batches(rows, lengths(rows), size, steps, source)
    drawn = poisson_batches(rows, size, steps, SeededCoins(source))
    return (part for batch in drawn for part in pieces(batch, lengths(batch), size))


def longest_text(runtime: Runtime, client_id: int) -> int:
    """Return the tokens of a client's longest text, training or test; the run's longest where its are not known.

    Args:
        runtime: the data.
        client_id: the client.
    """
    if not _are_looked_up(runtime):
        return runtime.sizing.most_tokens
    return max(int(runtime.examples.task.lengths(rows).max(initial=1)) for rows in runtime.client_rows(client_id))


def _are_looked_up(runtime: Runtime) -> bool:
    return runtime.config["num_clients"] <= MANY_CLIENTS and not isinstance(runtime.examples.partition, HeldElsewhere)


def texts_and_tokens(
    runtime: Runtime, client_id: int, kind: str, server_round: int, batch_size: int = 0
) -> tuple[int, int]:
    """Return how many texts a client computes in a round and their tokens, padding included.

    Exact for plain training. Evaluations count without padding.

    Args:
        runtime: data and settings.
        client_id: the client.
        kind: Flower's message type.
        server_round: the round.
        batch_size: examples a step, 0 for the config's.
    """
    lengths = runtime.examples.task.lengths
    if kind != "train":
        rows = runtime.client_rows(client_id)[1]
        return len(rows), int(lengths(rows).sum())
    batches = expected_batches(runtime, client_id, server_round, batch_size)
    sizes = [(len(batch), len(batch) * int(lengths(batch).max())) for batch in batches]
    return sum(texts for texts, _ in sizes), sum(tokens for _, tokens in sizes)


def text_length(runtime: Runtime, client_id: int, kind: str, server_round: int, batch_size: int = 0) -> int:
    """Return the mean tokens of a text in a client's round, padding included; of all texts where its are not known."""
    if not _are_looked_up(runtime):
        return runtime.examples.mean_length
    texts, tokens = texts_and_tokens(runtime, client_id, kind, server_round, batch_size)
    return max(1, round(tokens / max(1, texts)))


def learn(
    runtime: Runtime,
    client_id: int,
    server_round: int,
    personal: PersonalState,
    orders: Orders,
    trained: Sequence[str],
    live: list[torch.Tensor],
    pulls: Pulls | None,
) -> TrainResult:
    """Train in place what the orders let train.

    Args:
        runtime: model, loaded, data and settings.
        client_id: the client.
        server_round: the round.
        personal: the client's own folder.
        orders: what the server ordered.
        trained: keys of the shared tensors that train.
        live: what the optimiser updates.
        pulls: what else pulls on the gradients.

    Raises:
        PrivacyError, ConfigError: see ``private_round``.
        WireError: check ``orders``: this method cannot be checkpointed, or a batch size is ordered of a client whose
            privacy was accounted for with its own.
    """
    _check_orders(runtime, orders)
    if isinstance(runtime.privacy, ExampleLevel):
        return private_round(runtime, runtime.privacy, client_id, server_round, personal, orders, trained, live, pulls)
    rows, _ = runtime.client_rows(client_id)
    settings = ordered(runtime.settings, orders)
    return train(
        runtime.tunable,
        runtime.examples.task,
        rows,
        settings,
        dtype=runtime.dtype,
        seed=train_seed(runtime.seed, client_id, server_round),
        flops=runtime.step_flops(orders.rank, frozenset(trained), settings.gradient_checkpointing),
        parameters=live,
        pulls=pulls,
    )


def _check_orders(runtime: Runtime, orders: Orders) -> None:
    if isinstance(runtime.privacy, ExampleLevel) and (orders.batch_size or orders.checkpointing):
        raise WireError("orders", "under example-level privacy a client keeps its own batch size and no checkpoints")
    if orders.checkpointing:
        try:
            refuse_checkpointing(runtime.tunable.model)
        except ConfigError as error:
            raise WireError("orders", str(error)) from error
