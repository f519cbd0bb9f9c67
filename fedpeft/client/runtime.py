"""Everything that training and evaluation need, built once a process from the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.examples import Examples
from fedpeft.client.fitting import Fitted, fit, merged, parameters, payload_spec, put_away
from fedpeft.client.learning import Trained, learn, longest_text, text_length, texts_and_tokens
from fedpeft.client.measure import measure
from fedpeft.client.own import OwnData
from fedpeft.client.plan import rank_plan
from fedpeft.client.private_round import let_out, refuse_evaluation, refuse_probe, refuse_spent
from fedpeft.client.pulls import pulls_of
from fedpeft.client.sizing import Sizing
from fedpeft.client.state import PersonalState
from fedpeft.client.trainer import TrainResult, TrainSettings, evaluate
from fedpeft.codecs.base import Codec
from fedpeft.codecs.feedback import compress
from fedpeft.core.errors import DataError
from fedpeft.core.orders import Orders
from fedpeft.core.ranks import RankPlan
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors, TensorSpec
from fedpeft.core.wire import Identity, Instruction
from fedpeft.data.holdout import client_split, num_test_rows
from fedpeft.device_profiles.assignment import AnyFleet
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.device_profiles.memory import StepMemory
from fedpeft.methods.base import Method, Tunable, extract_tensors, load_tensors
from fedpeft.tasks.base import Scores
from fedpeft.tasks.batches import evaluation_batches

if TYPE_CHECKING:
    from torch import nn

SAMPLED_CLIENTS = 20
"""Clients whose batches tell what a usual length is."""
RESIDUAL = "residual."
"""Prefix, in a client's own state, of what its codec kept back."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A base model with its adapter, the data, and how to train; used by clients and by the server's evaluation.

    Attributes:
        tunable: the model with live adapter tensors; whoever trains or evaluates loads them first.
        method: the method that made it.
        codec: how replies are encoded.
        examples: the data.
        settings: how clients train.
        initial: what the shared tensors are before round 1.
        initial_local: what a client's own tensors are before it first trains.
        initial_head: the classification head before training, whatever becomes of it.
        identity: hashes of run, config and base model.
        dtype: dtype of the base and of the products.
        sizing: counts and measures steps.
        config: the plain config, for the seed and sizes.
        model_path: folder or hub id of the base model.
        allow: class-path prefixes that the config may name on this machine, None for any.
        privacy: what is promised to clients or their examples, e.g. ``ExampleLevel``; None for nothing.
        own: the real device that this is, None in a simulation.
    """

    tunable: Tunable
    method: Method
    codec: Codec
    examples: Examples
    settings: TrainSettings
    initial: Tensors
    initial_local: Tensors
    initial_head: Tensors
    identity: Identity
    dtype: str
    sizing: Sizing
    config: Mapping[str, Any]
    model_path: str
    allow: Sequence[str] | None = None
    privacy: Any = None
    own: OwnData | None = None

    @cached_property
    def admitted(self) -> dict[tuple[int, tuple[str, ...]], tuple[bool, ...]]:
        """What the privacy self-test has admitted in this process, see ``client.private_round``."""
        return {}

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    @cached_property
    def shared_spec(self) -> dict[str, TensorSpec]:
        """Shapes and dtypes of what travels."""
        return specs(self.initial)

    @cached_property
    def devices(self) -> list[str]:
        """Device profile of each simulated client."""
        fleet: AnyFleet = cfg.build(self.config["fleet"], self.allow)
        return fleet.assign(self.config["num_clients"], self.seed)

    @cached_property
    def _recent_rows(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Looking up a client's rows takes some milliseconds; the last few hundred clients are remembered."""

        def look_up(client_id: int) -> tuple[np.ndarray, np.ndarray]:
            held = self.examples.rows[self.examples.partition.indices(client_id)]
            return client_split(held, self.config["task"]["client_test_fraction"], self.seed, client_id)

        return lru_cache(maxsize=256)(look_up)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return self.examples.partition.sizes()

    @cached_property
    def eval_shards(self) -> list[list[np.ndarray]]:
        """The server's evaluation, cut into parts that depend on the config alone."""
        return self.examples.eval_parts(self.examples.eval_rows, self.config["evaluate"])

    @cached_property
    def parts(self) -> list[list[np.ndarray]]:
        """The evaluation's parts, then those of the examples that strategies may search on, cut likewise."""
        return self.eval_shards + self.examples.eval_parts(self.examples.search_rows, self.config["evaluate"])

    @property
    def step_flops(self) -> Callable[..., StepFlops]:
        """``Sizing.flops``: operations of a step by rank, trained tensors and checkpointing."""
        return self.sizing.flops

    @property
    def train_flops(self) -> StepFlops:
        """Cost of a training step of everything that the method trains."""
        return self.step_flops(0, frozenset(self.initial))

    @property
    def eval_flops(self) -> StepFlops:
        """Cost of a forward pass."""
        return self.step_flops(0, None)

    def client_rows(self, client_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the task rows that a client trains on and those it keeps for its own evaluation."""
        return self._recent_rows(client_id)

    @property
    def step_memory(self) -> Callable[..., StepMemory]:
        """``Sizing.memory``: peak memory of a step by rank, trained tensors, batch size, length and checkpointing."""
        return self.sizing.memory

    def longest(self, client_id: int) -> int:
        """Return the tokens of a client's longest text; see ``learning.longest_text``."""
        return longest_text(self, client_id)

    def text_length(self, client_id: int, kind: str, server_round: int, batch_size: int = 0) -> int:
        """Return the mean tokens of a text in a client's round; see ``learning.text_length``."""
        return text_length(self, client_id, kind, server_round, batch_size)

    @cached_property
    def usual_length(self) -> int:
        """Tokens of a text in a client's round, padding included, in the mean over the run's first clients."""
        clients = range(min(self.config["num_clients"], SAMPLED_CLIENTS))
        return round(sum(self.text_length(one, "train", 1) for one in clients) / len(clients))

    def num_train_examples(self, client_id: int) -> int:
        """Return how many examples a client trains on, without looking them up."""
        held = int(self._sizes[client_id])
        return held - num_test_rows(held, self.config["task"]["client_test_fraction"])

    def train(self, client_id: int, instruction: Instruction, personal: PersonalState, keep_from: int) -> Trained:
        """Train on a client's data as the server says; what stays with the client is written to its own state.

        Raises:
            WireError: the server's orders cannot be followed here.
            PrivacyError: the client's budget is spent, or the method is not sound here.
        """
        orders, server_round, payload = Orders.read(instruction.config), instruction.server_round, instruction.tensors
        refuse_probe(self.privacy, orders)
        refuse_spent(self, client_id, personal)
        own = personal.load(server_round)
        fitted = self._enter(payload, orders, own)
        rows, _ = self.client_rows(client_id)
        live = parameters(self.tunable, fitted.trained)
        with merged(self.tunable, payload):
            source = rng(self.seed, "probe", server_round, client_id)
            measured = measure(orders.probe, self.tunable, live, self.examples.task, rows, dtype=self.dtype, rng=source)
            result = TrainResult(loss=0.0, steps=0, flops=0.0, cpu_s=0.0)
            if measured.tensors is None:
                pulls = pulls_of(orders, self.tunable.shared, fitted.trained, payload)
                result = learn(self, client_id, server_round, personal, orders, fitted.trained, live, pulls)
        flops, cpu_s = result.flops, result.cpu_s + measured.cpu_s
        if orders.probe:
            flops += measured.flops(self.train_flops)
        result = replace(result, flops=flops, cpu_s=cpu_s)
        after = {**extract_tensors(self.tunable.shared), **(measured.tensors or {})}
        stays = {key: after[key] for key in fitted.kept} | extract_tensors(self.tunable.local)
        stays |= put_away(payload, orders, own)
        returned = orders.returned(payload)
        after |= let_out(self, client_id, server_round, personal, {key: fitted.values[key] for key in returned}, after)
        reply, residual = self._encoded(client_id, server_round, fitted, after, returned, own)
        stays |= residual
        if stays:
            personal.save(server_round, stays, keep_from)
        return Trained(tensors=reply, result=result, metrics=measured.metrics)

    def _encoded(
        self, client_id: int, server_round: int, fitted: Fitted, after: Tensors, returned: list[str], own: Tensors
    ) -> tuple[Tensors, Tensors]:
        """Return what travels of the returned tensors, and what the codec keeps back for the client's next round."""
        before = {key: fitted.values[key] for key in returned}
        kept = {key.removeprefix(RESIDUAL): value for key, value in own.items() if key.startswith(RESIDUAL)}
        # A client that has changed its rank starts anew: its residual belongs to other factors.
        fits = {key: value for key, value in kept.items() if key not in before or value.shape == before[key].shape}
        source = rng(self.seed, "codec", server_round, client_id)
        reply, residual = compress(self.codec, before, {key: after[key] for key in returned}, fits, source)
        return reply, {RESIDUAL + key: value for key, value in residual.items()}

    def expected_tokens(self, client_id: int, kind: str, server_round: int, batch_size: int = 0) -> int:
        """Return how many tokens, padding included, a client will compute in a round; exact for plain training."""
        return texts_and_tokens(self, client_id, kind, server_round, batch_size)[1]

    def shard_tokens(self, shard: int) -> int:
        """Return how many tokens, padding included, one part of the server's examples has."""
        lengths = self.examples.eval_task.lengths
        return sum(len(batch) * int(lengths(batch).max()) for batch in self.parts[shard])

    def evaluate_client(self, client_id: int, instruction: Instruction, personal: PersonalState) -> Scores | None:
        """Return the scores on a client's own held-out examples, None when it has none.

        Raises:
            WireError: the client does not tell, because of its privacy.
        """
        refuse_evaluation(self.privacy)
        # A client evaluates after round r with what it kept from round r, hence the + 1.
        own = personal.load(instruction.server_round + 1)
        self._enter(instruction.tensors, Orders.read(instruction.config), own)
        _, rows = self.client_rows(client_id)
        if len(rows) == 0:
            return None
        batches = evaluation_batches(rows, self.examples.task.lengths(rows), self.config["evaluate"]["batch_size"])
        with merged(self.tunable, instruction.tensors):
            return evaluate(self.tunable, self.examples.task, batches, dtype=self.dtype, flops=self.eval_flops)

    def evaluate_shard(self, tensors: Tensors, shard: int) -> Scores:
        """Return the scores of the global model on one part of the server's held-out examples.

        Args:
            tensors: what ``FedPeft.model_tensors`` returns.
            shard: number of the part.
        """
        data = self.examples.eval_task
        with self.global_model(tensors):
            return evaluate(self.tunable, data, self.parts[shard], dtype=self.dtype, flops=self.eval_flops)

    @contextmanager
    def global_model(self, tensors: Tensors) -> Iterator[nn.Module]:
        """Lend the model as the global tensors make it, for evaluation.

        Args:
            tensors: what ``FedPeft.model_tensors`` returns.
        """
        self._enter(tensors, Orders(), {})
        with merged(self.tunable, tensors):
            self.tunable.model.eval()
            yield self.tunable.model

    def payload_spec(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
        """Return what a message's tensors must look like, from its config and the shapes that it claims."""
        return payload_spec(Orders.read(config), shapes, self.initial)

    @property
    def ranks(self) -> RankPlan:
        """Rank and scaling of the global model and of each device."""
        return rank_plan(self.method, cfg.build(self.config["fleet"], self.allow), self.devices)

    def _enter(self, payload: Tensors, orders: Orders, own: Tensors) -> Fitted:
        """Make the model this client's: tensors from the server, its own ones from its last round."""
        fitted = fit(self.tunable, payload, orders, self.initial, own)
        for key, start in self.initial_local.items():
            if own and (key not in own or own[key].shape != start.shape):
                raise DataError(
                    f"this client's own state lacks {key}, or has it for another model (remove its folder to start "
                    "anew)"
                )
        load_tensors(self.tunable.local, {key: own.get(key, start) for key, start in self.initial_local.items()})
        return fitted
