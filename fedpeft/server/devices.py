"""The simulated devices of a run: who is there, what fits, what an exchange costs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo, Cost, Luck, Work
from fedpeft.device_profiles.availability import Presence
from fedpeft.device_profiles.fit import needed_mb, usable_mb
from fedpeft.device_profiles.luck import luck_of
from fedpeft.device_profiles.memory import StepMemory
from fedpeft.device_profiles.predict import predict
from fedpeft.device_profiles.schema import DeviceProfile
from fedpeft.server.world import Exchange, Refusal, World
from fedpeft.strategies.buffer import Clock

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SimulatedDevices:
    """A fleet under a run's settings.

    Attributes:
        runtime: the run's model, data and config.
        settings: ``devices`` of the config: ``jitter``, ``memory``, ``availability``.
        fleet: a built fleet.
        profile_of: reads the profile that a device tells of itself; simulated ones tell none.
    """

    runtime: Runtime
    settings: Mapping[str, Any]
    fleet: Any
    profile_of: Callable[[str], DeviceProfile | None] = lambda told: None
    _unknown: set[str] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def of(cls, runtime: Runtime) -> SimulatedDevices:
        """Return the devices of a run."""
        return cls(runtime=runtime, settings=runtime.config["devices"], fleet=cfg.build(runtime.config["fleet"]))

    @property
    def world(self) -> World:
        """What the grid asks."""
        return World(cost=self.cost, refusal=self.refusal, leaves_after_s=self.leaves_after_s)

    def cost(self, exchange: Exchange, work: Work) -> Cost:
        """Return what an exchange took; zeros for a device whose profile nobody here has."""
        profile = self._profile(exchange.client)
        if profile is None:
            return Cost(down_s=0.0, compute_s=0.0, up_s=0.0)
        client, luck = exchange.client, Luck()
        if self.settings["jitter"]:
            luck = luck_of(profile, self.runtime.seed, client.client_id, exchange.server_round, exchange.kind)
        return predict(profile, self._completed(exchange, work), luck)

    def refusal(self, exchange: Exchange) -> Refusal | None:
        """Return why a device cannot hold the work of a message, None where it can."""
        profile = self._profile(exchange.client)
        if profile is None or not self.settings["memory"]:
            return None
        asked_mb = needed_mb(profile, self._step_memory(exchange, self._longest(exchange)))
        there_mb = usable_mb(profile)
        if asked_mb <= there_mb:
            return None
        reason = f"needs {asked_mb:.0f} MiB, {exchange.client.device} has {there_mb:.0f} MiB for training"
        return Refusal(reason=reason, needed_mb=asked_mb)

    def leaves_after_s(self, exchange: Exchange, now_s: float, total_s: float) -> float:
        """Return the seconds after which a client is gone: its session ends, or it drops out of this round."""
        if not self.settings["availability"]:
            return math.inf
        client_id = exchange.client.client_id
        part = self._presence.drops_out(client_id, exchange.server_round) if exchange.kind == "train" else None
        dropped_s = math.inf if part is None else part * total_s
        return min(dropped_s, self._presence.leaves_s(client_id, now_s) - now_s)

    def present(self, clients: list[ClientInfo], clock: Clock) -> list[ClientInfo]:
        """Return who is available; where nobody is, time passes until somebody comes."""
        if not self.settings["availability"] or not clients:
            return clients
        ids = np.fromiter((client.client_id for client in clients), dtype=np.int64, count=len(clients))
        there = self._presence.available(ids, clock.now_s)
        if not there.any() and math.isfinite(first_s := self._presence.next_arrival_s(ids, clock.now_s)):
            clock.move_to(first_s)
            there = self._presence.available(ids, first_s)
        return [client for client, here in zip(clients, there, strict=True) if here]

    def expected(self, client: ClientInfo) -> Cost:
        """Return what a training round is expected to cost a client, from the usual length of texts."""
        profile = self._profile(client)
        if profile is None:
            return Cost(down_s=0.0, compute_s=0.0, up_s=0.0)
        runtime, settings = self.runtime, self.runtime.settings
        steps = settings.steps(client.num_examples)
        size = sum(one.num_bytes for one in runtime.shared_spec.values())
        up = sum(one.num_bytes for one in runtime.codec.encoded_spec(runtime.shared_spec).values())
        work = Work(
            flops=steps * runtime.train_flops.step(settings.batch_size, self.runtime.usual_length),
            bytes_down=size,
            bytes_up=up,
            dtype=runtime.dtype,
            num_steps=steps,
        )
        return predict(profile, work)

    @cached_property
    def _presence(self) -> Presence:
        devices = self.runtime.devices
        profiles = {name: self.fleet.profile(name).availability for name in dict.fromkeys(devices)}
        return Presence.of(profiles, devices, self.runtime.seed)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.runtime.devices)

    def knows(self, client: ClientInfo) -> bool:
        """Return whether there is a profile of a client's device."""
        return self._profile(client) is not None

    def _profile(self, client: ClientInfo) -> DeviceProfile | None:
        if client.profile and (told := self.profile_of(client.profile)):
            return told
        # A device names its own profile; one that this server lacks must not end a round.
        if client.device in self._known:
            profile: DeviceProfile = self.fleet.profile(client.device)
            return profile
        if client.device not in self._unknown:
            log.warning("no device profile %r here: the time of its clients is not predicted", client.device)
        self._unknown.add(client.device)
        return None

    def _completed(self, exchange: Exchange, work: Work) -> Work:
        """Return the work with the memory that it takes, and with its operations where a private client tells none."""
        if exchange.kind == "train" and not work.flops:
            work = replace(work, flops=self._expected_flops(exchange, work.num_steps))
        usual, longest = self._usual(exchange), self._longest(exchange)
        return replace(
            work,
            # Usual texts take the time, the longest one decides about memory.
            bytes_moved=work.num_steps * self._step_memory(exchange, min(usual, longest)).moved_bytes,
            peak_memory_bytes=math.ceil(self._step_memory(exchange, longest).process_bytes),
        )

    def _longest(self, exchange: Exchange) -> int:
        if self._is_private:
            return self.runtime.sizing.most_tokens
        return max(1, self.runtime.longest(exchange.client.client_id))

    def _usual(self, exchange: Exchange) -> int:
        if self._is_private:
            return self.runtime.usual_length
        ordered = self._orders(exchange).batch_size if exchange.kind == "train" else 0
        return self.runtime.text_length(exchange.client.client_id, exchange.kind, exchange.server_round, ordered)

    @property
    def _is_private(self) -> bool:
        """Whether a figure on record must not hang on one client's texts: its record carries no noise."""
        return self.runtime.privacy is not None

    def _step_memory(self, exchange: Exchange, tokens: int) -> StepMemory:
        """Return the memory of a step that a message asks of its client, on texts of so many tokens."""
        runtime = self.runtime
        if exchange.kind != "train":
            return runtime.step_memory(0, None, runtime.config["evaluate"]["batch_size"], tokens, False)
        orders = self._orders(exchange)
        return runtime.step_memory(
            orders.rank,
            self._trained(exchange, orders),
            orders.batch_size or runtime.settings.batch_size,
            tokens,
            orders.checkpointing or runtime.settings.gradient_checkpointing,
        )

    def _expected_flops(self, exchange: Exchange, num_steps: int) -> float:
        orders, runtime = self._orders(exchange), self.runtime
        step = runtime.step_flops(orders.rank, self._trained(exchange, orders))
        return num_steps * step.step(orders.batch_size or runtime.settings.batch_size, self.runtime.usual_length)

    def _orders(self, exchange: Exchange) -> Orders:
        return Orders.read(wire.config_of(exchange.message.content))

    def _trained(self, exchange: Exchange, orders: Orders) -> frozenset[str]:
        sent = [key for record in exchange.message.content.array_records.values() for key in record]
        everything = frozenset(self.runtime.shared_spec)
        # A client that only measures something still goes forward and back through the whole model.
        return everything if orders.probe else orders.trains(sent, everything) or everything
