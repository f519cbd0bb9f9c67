"""Building a runtime from the config: model, method, data, and what a step costs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.examples import Examples, load_examples, load_own_examples, say
from fedpeft.client.own import OwnData
from fedpeft.client.placing import check_accelerator, place
from fedpeft.client.runtime import Runtime
from fedpeft.client.sizing import Sizing, base_name, holds_gradients, refuse_checkpointing
from fedpeft.client.trainer import TrainSettings
from fedpeft.core.errors import ConfigError
from fedpeft.core.seeds import derive
from fedpeft.core.wire import Identity
from fedpeft.data.sources import resolve_model
from fedpeft.methods.base import Method, Tunable, extract_tensors
from fedpeft.methods.heads import head_parameters
from fedpeft.tasks.base import Task
from fedpeft.tasks.models import empty_twin, hash_model, load_causal_lm, load_classifier, max_tokens
from fedpeft.tasks.quantised import Storage, storage


@lru_cache(maxsize=1)
def runtime_for(config_json: str, allow: tuple[str, ...] | None, own: OwnData | None = None) -> Runtime:
    """Return the runtime of a config, built on first use in this process; forked workers inherit their parent's.

    Args:
        config_json: the config as it travels.
        allow: class-path prefixes that this machine's operator allows, None for any.
        own: the data of this device, None for the run's.
    """
    return build_runtime(json.loads(config_json), allow, own)


def build_runtime(config: cfg.Config, allow: Sequence[str] | None = None, own: OwnData | None = None) -> Runtime:
    """Load model and data, attach the method, split the data.

    Args:
        config: as it was sent.
        allow: class-path prefixes that may be built, None for any.
        own: a real device's data, which takes the place of the run's; None for the run's.

    Raises:
        ConfigError, DataError: the config cannot be run on this machine.
    """
    import torch

    torch.set_num_threads(1)
    # It warns of a kernel on the hub that it can do without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Both ends must mean the same config, whatever this device calls its files.
    config_hash = cfg.config_hash(config)
    config = own.applied(config) if own else config
    method: Method = cfg.build(config["method"], allow)
    settings = TrainSettings(**config["client"])
    model_config = config["model"]
    path = resolve_model(model_config["path"], model_config["revision"], progress=say)
    examples = load_own_examples(config, own, path) if own else load_examples(config, path, allow)
    model = _load_model(config, path, len(examples.label_names))
    _check_lengths(model, examples, getattr(method, "virtual_tokens", 0))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = examples.task.pad_id
    identity = Identity(run_id=str(config["run_id"]), config_hash=config_hash, model_hash=hash_model(model))
    stored = storage(model, model_config["dtype"])
    tunable = _attach(method, model, config)
    if settings.gradient_checkpointing:
        refuse_checkpointing(tunable.model)
    sizing = _sizing(method, model, examples, settings, config, stored)
    if own:
        check_accelerator(own.accelerator)
        tunable = place(tunable, own.accelerator)
    return Runtime(
        tunable=tunable,
        method=method,
        codec=cfg.build(config["codec"], allow),
        examples=examples,
        settings=settings,
        initial=extract_tensors(tunable.shared),
        initial_local=extract_tensors(tunable.local),
        initial_head=extract_tensors(head_parameters(tunable.model)),
        identity=identity,
        dtype=model_config["dtype"],
        sizing=sizing,
        config=config,
        model_path=path,
        allow=allow,
        privacy=cfg.build_if_named(config["privacy"], allow),
        own=own,
    )


def _load_model(config: cfg.Config, path: str, num_labels: int) -> Any:
    settings = config["model"]
    common: dict[str, Any] = {
        "dtype": settings["dtype"],
        "dropout": settings["dropout"],
        "seed": derive(config["seed"], "head") % 2**63,
        "revision": settings["revision"],
    }
    if config["task"]["kind"] == "causal_lm":
        return load_causal_lm(path, **common)
    return load_classifier(path, num_labels=num_labels, **common)


def _check_lengths(model: Any, examples: Examples, virtual_tokens: int) -> None:
    longest = _longest(examples)
    most = max_tokens(model)
    if most is not None and longest + virtual_tokens > most:
        prompt = f", and {virtual_tokens} virtual tokens stand before it" if virtual_tokens else ""
        raise ConfigError(
            f"model.max_length must be at most {most - virtual_tokens}: {type(model).__name__} has {most} positions, a "
            f"text has {longest} tokens{prompt}"
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


def _sizing(
    method: Method, model: Any, examples: Examples, settings: TrainSettings, config: cfg.Config, stored: Storage
) -> Sizing:
    kind, task = config["task"]["kind"], examples.task
    learned = getattr(task, "num_learned", None)
    return Sizing(
        method=method,
        build_base=partial(empty_twin, model.config, kind, dropout=config["model"]["dropout"]),
        base=base_name(model.config, kind, config["model"]["dropout"]),
        head=config["head"],
        task_kind=kind,
        attention=model.config._attn_implementation,
        dtype=config["model"]["dtype"],
        settings=settings,
        learned=1.0 if learned is None else float(learned.sum() / _lengths(task).sum()),
        most_tokens=_longest(examples),
        storage=stored,
        per_example=holds_gradients(cfg.build_if_named(config["privacy"])),
    )


def _longest(examples: Examples) -> int:
    return max(int(_lengths(task).max()) for task in (examples.task, examples.eval_task))


def _lengths(task: Task) -> np.ndarray:
    return task.lengths(np.arange(len(task.labels)))
