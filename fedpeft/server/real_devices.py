"""Real devices of a run: what an exchange took, measured, beside what was predicted for it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from fedpeft.client.runtime import Runtime
from fedpeft.core.errors import ConfigError
from fedpeft.core.types import ClientInfo, Cost, Work
from fedpeft.device_profiles.schema import DeviceProfile
from fedpeft.server.devices import SimulatedDevices
from fedpeft.server.figures import number
from fedpeft.server.world import Exchange, World
from fedpeft.strategies.buffer import Clock

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RealDevices:
    """Devices that take the time they take.

    Attributes:
        twins: predicts for the same devices; without jitter, because nothing is drawn here.
    """

    twins: SimulatedDevices

    @classmethod
    def of(cls, runtime: Runtime) -> RealDevices:
        """Return the devices of a run."""
        twins = SimulatedDevices.of(runtime)
        return cls(twins=replace(twins, settings={**twins.settings, "jitter": False}, profile_of=told_profile))

    @property
    def world(self) -> World:
        """What the grid asks."""
        return World(cost=self.cost, predicted=self.predicted, is_real=True)

    def cost(self, exchange: Exchange, work: Work) -> Cost:
        """Return what an exchange took, from the clock of the server and what the client tells of its own.

        The whole is the server's: from sending to the reply. Of it the client may claim parts, download and work, but
        no more than there was; the rest is the upload and the waiting on both ends.
        """
        prefix = "train" if exchange.kind == "train" else "eval"
        total_s = time.monotonic() - exchange.sent_at_s
        worked_s = _claimed(exchange.told, f"{prefix}-wall-s") or _claimed(exchange.told, f"{prefix}-cpu-s")
        compute_s = min(total_s, worked_s)
        down_s = min(total_s - compute_s, _claimed(exchange.told, "down-s"))
        return Cost(
            down_s=down_s,
            compute_s=compute_s,
            up_s=total_s - compute_s - down_s,
            energy_j=_claimed(exchange.told, "energy-j") or None,
            peak_memory_mb=_claimed(exchange.told, "peak-memory-mb") or None,
        )

    def predicted(self, exchange: Exchange, work: Work) -> Cost | None:
        """Return what the device's profile makes of an exchange, None where nobody knows its profile."""
        return self.twins.cost(exchange, work) if self.twins.knows(exchange.client) else None

    def present(self, clients: list[ClientInfo], clock: Clock) -> list[ClientInfo]:
        """Return them all: whoever is away is not in the roster."""
        return clients

    def expected(self, client: ClientInfo) -> Cost:
        """Return what a training round is expected to cost a client."""
        return self.twins.expected(client)


@lru_cache(maxsize=1024)
def told_profile(told: str) -> DeviceProfile | None:
    """Return the profile that a device has told of itself, None where it is no sound one."""
    try:
        return DeviceProfile.from_mapping(json.loads(told))
    except (ConfigError, ValueError, RecursionError) as error:
        log.warning("a device tells a profile that cannot be read: %s", str(error).splitlines()[0])
        return None


def _claimed(told: Mapping[str, object], name: str) -> float:
    return max(0.0, number(told.get(name)))
