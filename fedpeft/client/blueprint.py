"""A run's model and method without data and weights: enough to count what a round of it would take."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.assumed import Asked, Assumed, Uniform
from fedpeft.client.building import _attach
from fedpeft.client.examples import say
from fedpeft.client.plan import rank_plan
from fedpeft.client.sizing import Sizing, base_name, holds_gradients, refuse_checkpointing
from fedpeft.client.trainer import TrainSettings
from fedpeft.codecs.base import Codec
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import Tensors, TensorSpec
from fedpeft.data.sources import resolve_model
from fedpeft.device_profiles.flops import StepFlops
from fedpeft.device_profiles.memory import StepMemory
from fedpeft.device_profiles.presets import load_profile
from fedpeft.methods.base import Method, Tunable
from fedpeft.methods.lora import LoRA
from fedpeft.tasks.models import empty_twin, max_tokens, plain_config, resolve_dtype
from fedpeft.tasks.quantised import Storage, storage_of
from fedpeft.tasks.stored_files import storage_in_files


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What predictions read of a ``Runtime``, under the same names, with nothing loaded.

    Attributes:
        tunable: the model with the method attached, on torch's meta device: shapes without values.
        method: the method.
        codec: how replies would be encoded.
        settings: how clients would train.
        sizing: counts and measures steps.
        config: the composed config.
        dtype: dtype of the base and of the products.
        assumed: what the data would tell, with the length filled in.
        devices: device profiles that are asked about.
    """

    tunable: Tunable
    method: Method
    codec: Codec
    settings: TrainSettings
    sizing: Sizing
    config: Mapping[str, Any]
    dtype: str
    assumed: Assumed
    devices: Sequence[str] = field(default=())

    @property
    def privacy(self) -> Any:
        """What is promised to clients or their examples, None for nothing."""
        return cfg.build_if_named(self.config["privacy"])

    @cached_property
    def fleet(self) -> Asked:
        """The devices that are asked about."""
        return Asked(profiles={name: load_profile(name) for name in dict.fromkeys(self.devices)})

    @property
    def ranks(self) -> RankPlan:
        """Rank and scaling of the global model and of each device."""
        plan = rank_plan(self.method, self.fleet, list(self.devices))
        named = self.method.ranks if isinstance(self.method, LoRA) else None
        # Devices that are not asked about are in the run all the same, and make it one of mixed ranks.
        return replace(plan, by_device={**(named or {}), **plan.by_device})

    @property
    def seq_len(self) -> int:
        """Tokens of every batch's longest text."""
        return self.sizing.most_tokens

    @property
    def usual_length(self) -> int:
        """Tokens of a text in a client's round: all are alike."""
        return self.seq_len

    @property
    def num_steps(self) -> int:
        """Optimiser steps of a client in a round."""
        return self.settings.steps(self.assumed.num_examples or 1)

    @property
    def examples(self) -> Uniform:
        """Examples of one client for each device, all of the same length."""
        return Uniform(rows=range((self.assumed.num_examples or 1) * len(self.devices)))

    @cached_property
    def initial(self) -> Tensors:
        """Arrays of the right shapes that hold one zero each: they take no memory."""
        return {
            key: np.broadcast_to(np.zeros((), _numpy_name(value.dtype)), tuple(value.shape))
            for key, value in self.tunable.shared.items()
        }

    @cached_property
    def shared_spec(self) -> dict[str, TensorSpec]:
        """Shapes and dtypes of what travels."""
        return {key: TensorSpec(value.shape, value.dtype.name) for key, value in self.initial.items()}

    @cached_property
    def step_flops(self) -> Callable[..., StepFlops]:
        """``Sizing.flops``, each cost counted once."""
        return lru_cache(maxsize=256)(self.sizing.flops)

    @property
    def step_memory(self) -> Callable[..., StepMemory]:
        """``Sizing.memory``."""
        return self.sizing.memory


def draw(config: cfg.Config, assumed: Assumed, devices: Sequence[str] = ()) -> Blueprint:
    """Return the blueprint of a config.

    Args:
        config: composed, checked.
        assumed: what only the data would tell.
        devices: device profiles to ask about.

    Raises:
        ConfigError: the method does not fit the model, the length is too large, or steps cannot be counted.
        DataError: there is no model.
    """
    import torch

    # It warns of a kernel on the hub that it can do without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    method: Method = cfg.build(config["method"])
    settings = TrainSettings(**config["client"])
    if settings.local_steps is None and assumed.num_examples is None:
        raise ConfigError("client.local_steps=null counts epochs: say how many examples a client has (set --examples)")
    dtype, kind = resolve_dtype(config["model"]["dtype"]), config["task"]["kind"]
    path = resolve_model(config["model"]["path"], config["model"]["revision"], progress=say)
    model_config = _model_config(path, config, assumed.num_labels)
    stored = storage_in_files(path, dtype) if storage_of(model_config, path) else Storage()
    with torch.device("meta"):
        model = _model(model_config, kind, path, dtype)
        # Attaching may set entries of the config, which twins must not have yet.
        attention, most = model.config._attn_implementation, max_tokens(model)
        tunable = _attach(method, model, config)
    if settings.gradient_checkpointing:
        refuse_checkpointing(tunable.model)
    sizing = Sizing(
        method=method,
        build_base=partial(empty_twin, model_config, kind, dropout=config["model"]["dropout"]),
        base=base_name(model_config, kind, config["model"]["dropout"]),
        head=config["head"],
        task_kind=kind,
        attention=attention,
        dtype=dtype,
        settings=settings,
        learned=assumed.learned,
        most_tokens=_length(config, assumed, most, getattr(method, "virtual_tokens", 0)),
        storage=stored,
        per_example=holds_gradients(cfg.build_if_named(config["privacy"])),
    )
    return Blueprint(
        tunable=tunable,
        method=method,
        codec=cfg.build(config["codec"]),
        settings=settings,
        sizing=sizing,
        config=config,
        dtype=dtype,
        assumed=assumed,
        devices=tuple(devices),
    )


def _model_config(path: str, config: cfg.Config, num_labels: int) -> Any:
    """Return the Hugging Face config of the base, as it is once the data has been seen."""
    from transformers import AutoConfig
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    settings = {} if config["task"]["kind"] == "causal_lm" else {"num_labels": num_labels}
    try:
        found = AutoConfig.from_pretrained(path, revision=config["model"]["revision"], **settings)
    except (OSError, ValueError) as error:
        raise DataError(f"no model at {path}: {_first_line(error)} (set model.path)") from error
    if found.pad_token_id is None:
        # Any will do where no texts are read; without one, models refuse a batch.
        found.pad_token_id = 0
    return found


def _model(model_config: Any, kind: str, path: str, dtype: str) -> Any:
    """Return the base without values, with the attention that it would run with."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForSequenceClassification
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return auto.from_config(plain_config(model_config), dtype=getattr(torch, dtype))
    except ValueError as error:
        raise DataError(f"{path} is no model for {kind}: {_first_line(error)} (set model.path)") from error


def _length(config: cfg.Config, assumed: Assumed, most: int | None, virtual_tokens: int) -> int:
    """Return the tokens that batches are padded to.

    Raises:
        ConfigError: no text of this run would be so long.
    """
    cut = config["model"]["max_length"]
    allowed = cut if most is None else min(cut, most - virtual_tokens)
    if assumed.seq_len is None:
        return int(allowed)
    if assumed.seq_len > cut:
        raise ConfigError(
            f"texts are cut to model.max_length={cut} tokens, got {assumed.seq_len} (set --seq-len or model.max_length)"
        )
    if assumed.seq_len > allowed:
        raise ConfigError(
            f"seq_len must be at most {allowed}: the model has {most} positions, {virtual_tokens} of them for virtual "
            f"tokens, got {assumed.seq_len} (set --seq-len)"
        )
    return assumed.seq_len


def _numpy_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
