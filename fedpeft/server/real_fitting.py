"""What a real device trains so that it fits: by the profile that it tells, and less after it ran out of memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from fedpeft.client.runtime import Runtime
from fedpeft.core.errors import is_out_of_memory
from fedpeft.core.events import ClientReplied, Event
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo
from fedpeft.device_profiles.fit import Choice, fit
from fedpeft.server.fitting import Fitting, choices_for
from fedpeft.server.real_devices import told_profile
from fedpeft.strategies.base import FedPeft

SMALLER = 0.75
"""Share, of the memory that a device turned out not to have, that it is asked for next: three tries halve it."""


@dataclass(frozen=True, kw_only=True)
class RealFitting:
    """Chooses layers, batch and gradient checkpointing for each device; an observer that learns of lack of memory.

    Ranks stay as ``method.rank`` and ``method.ranks`` have them: which devices there are is not known when the global
    rank is.

    Attributes:
        runtime: the run's model, method and data.
        strategy: says what may differ between clients.
    """

    runtime: Runtime
    strategy: FedPeft
    _limits_mb: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _last: dict[int, Choice] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, event: Event) -> None:
        """Take note of a device that ran out of memory."""
        if not isinstance(event, ClientReplied) or event.kind != "train" or not is_out_of_memory(event.detail):
            return
        if (choice := self._last.get(event.client_id)) is not None:
            self._limits_mb[event.client_id] = SMALLER * self._needed_mb(choice)

    def orders(self, client: ClientInfo) -> Orders:
        """Return what a device is told besides what the strategy tells it; nothing where nothing is known to fit."""
        plan = self.runtime.ranks
        rank = plan.by_device.get(client.device, plan.default) or 0
        # Their order is that of `choices_for`, best first, and the first is the config as it is.
        choices = [one for one in choices_for(self.runtime, self.strategy, rank) if one.rank in (0, rank)]
        limit_mb = self._limits_mb.get(client.client_id, math.inf)
        held = [one for one in choices if self._needed_mb(one) <= limit_mb] if math.isfinite(limit_mb) else choices
        profile = told_profile(client.profile) if client.profile else None
        choice: Choice | None
        if profile is None:
            choice = held[0] if held else None
        else:
            deadline_s = self.runtime.config["round"]["deadline_s"]
            choice = fit(profile, held, self._fitting.work, deadline_s=deadline_s)
        # A device that can hold none of it tries the least: it may be better than its profile.
        choice = choice or (held or choices)[-1]
        self._last[client.client_id] = choice
        return replace(self._fitting, choices={client.device: choice}).orders(client)

    @property
    def _fitting(self) -> Fitting:
        return Fitting(runtime=self.runtime, choices={})

    def _needed_mb(self, choice: Choice) -> float:
        needed = self._fitting.work(choice).peak_memory_bytes
        assert needed is not None, "a fitting's work says what memory it needs"
        return needed / 2**20
