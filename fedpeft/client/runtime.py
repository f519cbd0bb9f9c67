"""Everything that training and evaluation need, built once a process from the config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.examples import Examples, load_examples, say
from fedpeft.client.state import PersonalState
from fedpeft.client.trainer import TrainResult, TrainSettings, evaluate, train
from fedpeft.core.errors import ConfigError
from fedpeft.core.seeds import derive
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors, TensorSpec
from fedpeft.core.wire import Identity
from fedpeft.data.holdout import client_split, num_test_rows
from fedpeft.data.sources import resolve_model
from fedpeft.data.table import count_by_name
from fedpeft.device_profiles.flops import StepFlops, measure_step_flops
from fedpeft.methods.base import Method, Tunable, extract_tensors, load_tensors
from fedpeft.methods.heads import head_parameters
from fedpeft.tasks.base import Scores
from fedpeft.tasks.batches import evaluation_batches, shards, training_batches
from fedpeft.tasks.models import hash_model, load_classifier, max_tokens


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A base model with its adapter, the data, and how to train; used by clients and by the server's evaluation.

    Attributes:
        tunable: the model with live adapter tensors; whoever trains or evaluates loads them first.
        method: the method that made it.
        examples: the data.
        settings: how clients train.
        initial: what the shared tensors are before round 1.
        initial_local: what a client's own tensors are before it first trains.
        initial_head: the classification head before training, whatever becomes of it.
        identity: hashes of run, config and base model.
        dtype: dtype of the base and of the products.
        train_flops: cost of a training step.
        eval_flops: cost of a forward pass.
        config: the plain config, for the seed and sizes.
        model_path: folder or hub id of the base model.
        allow: class-path prefixes that the config may name on this machine, None for any.
    """

    tunable: Tunable
    method: Method
    examples: Examples
    settings: TrainSettings
    initial: Tensors
    initial_local: Tensors
    initial_head: Tensors
    identity: Identity
    dtype: str
    train_flops: StepFlops
    eval_flops: StepFlops
    config: Mapping[str, Any]
    model_path: str
    allow: Sequence[str] | None = None

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
        return cfg.build(self.config["fleet"], self.allow).assign(self.config["num_clients"], self.seed)

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
        data, settings = self.examples, self.config["evaluate"]
        batches = evaluation_batches(data.eval_rows, data.eval_task.lengths(data.eval_rows), settings["batch_size"])
        return shards(batches, settings["shards"])

    def client_rows(self, client_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the task rows that a client trains on and those it keeps for its own evaluation."""
        return self._recent_rows(client_id)

    def num_train_examples(self, client_id: int) -> int:
        """Return how many examples a client trains on, without looking them up."""
        held = int(self._sizes[client_id])
        return held - num_test_rows(held, self.config["task"]["client_test_fraction"])

    def train(
        self, client_id: int, server_round: int, tensors: Tensors, personal: PersonalState, keep_from: int
    ) -> TrainResult:
        """Train the adapter from ``tensors`` on a client's data; the result stays in ``tunable``."""
        local = self._enter(tensors, personal, server_round)
        rows, _ = self.client_rows(client_id)
        seed = self._train_seed(client_id, server_round)
        result = train(
            self.tunable, self.examples.task, rows, self.settings, dtype=self.dtype, seed=seed, flops=self.train_flops
        )
        if local:
            personal.save(server_round, extract_tensors(self.tunable.local), keep_from)
        return result

    def expected_tokens(self, client_id: int, kind: str, server_round: int) -> int:
        """Return how many tokens, padding included, a client will compute in a round; exact for training."""
        train_rows, test_rows = self.client_rows(client_id)
        if kind != "train":
            return int(self.examples.task.lengths(test_rows).sum())
        rng = np.random.Generator(np.random.PCG64(self._train_seed(client_id, server_round)))
        steps = self.settings.steps(len(train_rows))
        lengths = self.examples.task.lengths
        batches = training_batches(train_rows, lengths(train_rows), self.settings.batch_size, steps, rng)
        return sum(len(batch) * int(lengths(batch).max()) for batch in batches)

    def shard_tokens(self, shard: int) -> int:
        """Return how many tokens, padding included, one part of the server's evaluation has."""
        lengths = self.examples.eval_task.lengths
        return sum(len(batch) * int(lengths(batch).max()) for batch in self.eval_shards[shard])

    def _train_seed(self, client_id: int, server_round: int) -> int:
        return derive(self.seed, "train", server_round, client_id) % 2**63

    def evaluate_client(
        self, client_id: int, server_round: int, tensors: Tensors, personal: PersonalState
    ) -> Scores | None:
        """Return the scores on a client's own held-out examples, None when it has none."""
        # A client evaluates after round r with what it kept from round r, hence the + 1.
        self._enter(tensors, personal, server_round + 1)
        _, rows = self.client_rows(client_id)
        if len(rows) == 0:
            return None
        batches = evaluation_batches(rows, self.examples.task.lengths(rows), self.config["evaluate"]["batch_size"])
        return evaluate(self.tunable, self.examples.task, batches, dtype=self.dtype, flops=self.eval_flops)

    def evaluate_shard(self, tensors: Tensors, shard: int) -> Scores:
        """Return the scores of the global tensors on one part of the server's held-out examples."""
        load_tensors(self.tunable.shared, tensors)
        load_tensors(self.tunable.local, self.initial_local)
        return evaluate(
            self.tunable, self.examples.eval_task, self.eval_shards[shard], dtype=self.dtype, flops=self.eval_flops
        )

    def _enter(self, tensors: Tensors, personal: PersonalState, server_round: int) -> Tensors:
        """Make the model this client's: shared tensors from the server, own ones from its last round."""
        load_tensors(self.tunable.shared, tensors)
        local = (
            (personal.load(server_round, specs(self.initial_local)) or self.initial_local) if self.initial_local else {}
        )
        load_tensors(self.tunable.local, local)
        return local


@lru_cache(maxsize=1)
def runtime_for(config_json: str, allow: tuple[str, ...] | None) -> Runtime:
    """Return the runtime of a config, built on first use in this process; forked workers inherit their parent's.

    Args:
        config_json: the config as it travels.
        allow: class-path prefixes that this machine's operator allows, None for any.
    """
    return build_runtime(json.loads(config_json), allow)


def build_runtime(config: cfg.Config, allow: Sequence[str] | None = None) -> Runtime:
    """Load model and data, attach the method, split the data.

    Raises:
        ConfigError, DataError: the config cannot be run on this machine.
    """
    import torch

    torch.set_num_threads(1)
    method: Method = cfg.build(config["method"], allow)
    settings = TrainSettings(**config["client"])
    model_config = config["model"]
    path = resolve_model(model_config["path"], model_config["revision"], progress=say)
    examples = load_examples(config, path, allow)
    model = load_classifier(
        path,
        num_labels=len(examples.label_names),
        dtype=model_config["dtype"],
        dropout=model_config["dropout"],
        seed=derive(config["seed"], "head") % 2**63,
        revision=model_config["revision"],
    )
    _check_lengths(model, examples)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = examples.task.pad_id
    identity = Identity(run_id=str(config["run_id"]), config_hash=cfg.config_hash(config), model_hash=hash_model(model))
    tunable = _attach(method, model, config)
    return Runtime(
        tunable=tunable,
        method=method,
        examples=examples,
        settings=settings,
        initial=extract_tensors(tunable.shared),
        initial_local=extract_tensors(tunable.local),
        initial_head=extract_tensors(head_parameters(tunable.model)),
        identity=identity,
        dtype=model_config["dtype"],
        train_flops=measure_step_flops(lambda: _meta_model(method, model, config["head"])),
        eval_flops=measure_step_flops(lambda: _meta_model(method, model, config["head"]), forward_only=True),
        config=config,
        model_path=path,
        allow=allow,
    )


def describe_data(runtime: Runtime, most: int = 200) -> dict[str, Any]:
    """Return who holds what, for the report: totals, and labels and groups of the first ``most`` clients."""
    data = runtime.examples
    clients = []
    for client_id in range(min(most, runtime.config["num_clients"])):
        rows = np.concatenate(runtime.client_rows(client_id))
        clients.append({
            "client_id": client_id,
            "device": runtime.devices[client_id],
            "num_examples": len(rows),
            "labels": count_by_name(data.task.labels[rows], data.label_names),
            "groups": count_by_name(data.task.groups[rows], data.group_names),
        })  # fmt: skip
    return {
        "num_clients": runtime.config["num_clients"],
        "num_train": len(data.rows),
        "num_eval": len(data.eval_rows),
        "labels": list(data.label_names),
        "groups": list(data.group_names),
        "clients": clients,
    }


def personal_state(config: Mapping[str, Any], client_id: int, folder: str | None = None) -> PersonalState:
    """Return where a client keeps its own tensors: ``folder``, else in the run directory."""
    root = Path(folder) if folder else Path(config["run_dir"]) / "checkpoints" / "clients"
    return PersonalState(root / f"client-{client_id:06d}")


def _check_lengths(model: Any, examples: Examples) -> None:
    longest = max(int(task.lengths(np.arange(len(task.labels))).max()) for task in (examples.task, examples.eval_task))
    most = max_tokens(model)
    if most is not None and longest > most:
        raise ConfigError(
            f"model.max_length must be at most {most}, the positions that {type(model).__name__} has: "
            f"a text has {longest} tokens"
        )


def _attach(method: Method, model: Any, config: cfg.Config) -> Tunable:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config["seed"], "adapter") % 2**63)
        tunable = method.attach(model, config["head"])
    if not tunable.shared:
        raise ConfigError(
            "nothing would travel: the method trains no tensor and the head is not shared (set head=share)"
        )
    return tunable


def _meta_model(method: Method, model: Any, head: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    twin = AutoModelForSequenceClassification.from_config(model.config, attn_implementation="eager")
    return method.attach(twin, head).model
