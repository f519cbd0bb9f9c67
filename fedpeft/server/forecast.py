"""What a client's round would take on a device, from a config alone: no data, no weights, no run.

It is the first round's message and the work that it asks for, from the strategy's own hooks, the method's own shapes
and the same formulas that a simulation uses; luck, drop-outs and probes of single strategies are left out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from fedpeft import config as cfg
from fedpeft.client.app import CHECKPOINT_ROUND
from fedpeft.client.blueprint import Blueprint
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError
from fedpeft.core.metrics import ROUND_METRICS
from fedpeft.core.orders import Orders
from fedpeft.core.ranks import RankPlan
from fedpeft.core.tensors import specs
from fedpeft.core.types import ClientInfo, Cost, Tensors, TensorSpec, Work
from fedpeft.device_profiles.fit import Choice, usable_mb
from fedpeft.device_profiles.predict import predict
from fedpeft.server.app import build_strategy
from fedpeft.server.fitting import Fitting
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.instruct import rank_entries, with_orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One client's round on one device.

    Attributes:
        device: name of its profile.
        work: what is asked of it.
        cost: what that takes, as expected.
        usable_mb: MiB that training may take there.
        batch_size: examples a step.
        rank: LoRA rank, None for methods without one.
        checkpointing: whether layers are recomputed in the backward pass.
        choice: what was made to fit, None where nothing was asked to, or nothing does.
    """

    device: str
    work: Work
    cost: Cost
    usable_mb: float
    batch_size: int
    rank: int | None
    checkpointing: bool
    choice: Choice | None = None

    @property
    def fits(self) -> bool:
        """Whether the device can hold the work."""
        return self.cost.peak_memory_mb is not None and self.cost.peak_memory_mb <= self.usable_mb


def forecast(blueprint: Blueprint, *, fitted: bool = False) -> list[Forecast]:
    """Return what a round would take on each of the blueprint's devices.

    Args:
        blueprint: model, method and devices.
        fitted: give each device the largest rank, layers and batch that fit, as ``devices.fit=true`` does; one that
            can hold none of them keeps the config's.

    Raises:
        ConfigError: ``fitted`` under a strategy that is none of fedpeft's own.
    """
    strategy = build_strategy(blueprint.config)
    # It reads of a runtime what a blueprint has, under the same names.
    source: Any = blueprint
    fitting = None
    if fitted:
        if not isinstance(strategy, FedPeft):
            raise ConfigError(
                f"strategy {type(strategy).__name__} cannot order what a device trains: fitting needs one of fedpeft's "
                "own (leave --fit out)"
            )
        fitting = Fitting.of(source, strategy, blueprint.fleet)
    return [_of_device(blueprint, strategy, fitting, device) for device in dict.fromkeys(blueprint.devices)]


def _of_device(blueprint: Blueprint, strategy: Any, fitting: Fitting | None, device: str) -> Forecast:
    profile, plan = blueprint.fleet.profile(device), blueprint.ranks
    plan = fitting.ranks(plan) if fitting else plan
    # A number of its own: what strategies remember of clients is not this one's.
    client = plan.assign(
        ClientInfo(client_id=0, node_id=1, num_examples=blueprint.assumed.num_examples or 1, device=device)
    )
    sent, orders, bytes_of_config = _message(blueprint, strategy, fitting, client, plan)
    work = _work(blueprint, orders, sent, bytes_of_config)
    return Forecast(
        device=device,
        work=work,
        cost=predict(profile, work),
        usable_mb=usable_mb(profile),
        batch_size=orders.batch_size or blueprint.settings.batch_size,
        rank=orders.rank or client.rank,
        checkpointing=orders.checkpointing or blueprint.settings.gradient_checkpointing,
        choice=fitting.choices.get(device) if fitting else None,
    )


def _message(
    blueprint: Blueprint, strategy: Any, fitting: Fitting | None, client: ClientInfo, plan: RankPlan
) -> tuple[Tensors, Orders, int]:
    """Return a client's tensors and orders in round 1, and the bytes of its message without the tensors.

    A real message would hold its tensors packed, in memory that a blueprint does not take.
    """
    entries: dict[str, Any] = {CHECKPOINT_ROUND: 0}
    sent = blueprint.initial
    if isinstance(strategy, FedPeft):
        strategy.view = replace(strategy.view, ranks=plan, asked=(client,))
        entries |= {**rank_entries(client, plan), **strategy.client_config(client)}
        sent = strategy.client_tensors(blueprint.initial, client)
    if fitting is not None:
        entries = with_orders(entries, fitting.orders(client))
    content = wire.instruction(ArrayRecord(), 1, _identity(blueprint), entries)
    return sent, Orders.read(entries), wire.content_bytes(content)


def _work(blueprint: Blueprint, orders: Orders, sent: Tensors, bytes_of_config: int) -> Work:
    trained = orders.trains(sent, blueprint.shared_spec) or frozenset(blueprint.shared_spec)
    batch_size = orders.batch_size or blueprint.settings.batch_size
    checkpointing = orders.checkpointing or blueprint.settings.gradient_checkpointing
    flops = blueprint.step_flops(orders.rank, trained, checkpointing)
    memory = blueprint.step_memory(orders.rank, trained, batch_size, blueprint.seq_len, checkpointing)
    going, steps = specs(sent), blueprint.num_steps
    coming = blueprint.codec.encoded_spec({key: going[key] for key in orders.returned(sent)})
    return Work(
        flops=steps * flops.step(batch_size, blueprint.seq_len),
        bytes_down=bytes_of_config + array_bytes(going),
        bytes_up=_bytes_of_reply(blueprint) + array_bytes(coming),
        dtype=blueprint.dtype,
        num_steps=steps,
        bytes_moved=steps * memory.moved_bytes,
        peak_memory_bytes=math.ceil(memory.process_bytes),
    )


def array_bytes(spec: Mapping[str, TensorSpec]) -> int:
    """Return the bytes of a message's arrays by Flower's count: names, ``numpy.save`` headers and values."""
    return sum(len(key) + _header_bytes(one) + one.num_bytes for key, one in spec.items())


def _header_bytes(one: TensorSpec) -> int:
    stream = io.BytesIO()
    described = {"descr": np.dtype(one.dtype).str, "fortran_order": False, "shape": one.shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.tell()


def _bytes_of_reply(blueprint: Blueprint) -> int:
    """Return the bytes of a reply without its tensors."""
    instruction = wire.Instruction(tensors={}, server_round=1, identity=_identity(blueprint), config={})
    return wire.content_bytes(wire.reply(instruction, None, dict.fromkeys(ROUND_METRICS, 0.0)))


def _identity(blueprint: Blueprint) -> wire.Identity:
    """Return an identity as long as a run's."""
    return wire.Identity(run_id="0" * 32, config_hash=cfg.config_hash(dict(blueprint.config)), model_hash="0" * 64)
