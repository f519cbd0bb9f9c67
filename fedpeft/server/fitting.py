"""What each device of a fleet trains so that it fits: rank, layers, batch and gradient checkpointing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedpeft.client.fitting import at_rank
from fedpeft.client.runtime import Runtime
from fedpeft.core.errors import ConfigError
from fedpeft.core.layers import layers_of
from fedpeft.core.orders import Orders
from fedpeft.core.ranks import RankPlan
from fedpeft.core.tensors import specs
from fedpeft.core.traits import RANKS
from fedpeft.core.types import ClientInfo, Work
from fedpeft.device_profiles.assignment import SupportsProfile
from fedpeft.device_profiles.fit import Choice, candidates, fit, layers_below
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.strategies.base import FedPeft


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """The choice for each device profile; devices that can hold nothing of it have none and are refused later.

    Attributes:
        runtime: the run's model, method and data.
        choices: by the profile's name.
    """

    runtime: Runtime
    choices: Mapping[str, Choice]

    @classmethod
    def of(cls, runtime: Runtime, strategy: FedPeft, fleet: SupportsProfile) -> Fitting:
        """Find for every device of the run the most that fits its memory and the round's deadline.

        Ranks differ only under rules that bear mixed ranks, layers only under those that bear mixed layers. A device
        gets no larger rank than ``method.ranks`` gives it. Under example-level privacy batch size and checkpointing
        are the client's own: its noise was fitted to them.
        """
        fitting, plan = cls(runtime=runtime, choices={}), runtime.ranks
        deadline_s = runtime.config["round"]["deadline_s"]
        found: dict[str, Choice] = {}
        for device in dict.fromkeys(runtime.devices):
            wanted = choices_for(runtime, strategy, plan.by_device.get(device, plan.default or 0))
            choice = fit(fleet.profile(device), wanted, fitting.work, deadline_s=deadline_s)
            found |= {device: choice} if choice else {}
        return replace(fitting, choices=found)

    def work(self, choice: Choice) -> Work:
        """Return what a round of a choice asks of a device, on texts of the usual length with one of the longest."""
        runtime, trained = self.runtime, self._trained(choice)
        tensors = specs(at_rank(runtime.initial, choice.rank))
        coming = runtime.codec.encoded_spec({key: one for key, one in tensors.items() if key in trained})
        settings = replace(runtime.settings, batch_size=choice.batch_size)
        steps = settings.steps(len(runtime.examples.rows) // len(runtime.devices))
        usual, largest = (
            runtime.step_memory(choice.rank, trained, choice.batch_size, tokens, choice.checkpointing)
            for tokens in (runtime.usual_length, runtime.sizing.most_tokens)
        )
        step = runtime.step_flops(choice.rank, trained, choice.checkpointing)
        return Work(
            flops=steps * step.step(choice.batch_size, runtime.usual_length),
            bytes_down=sum(one.num_bytes for one in tensors.values()),
            bytes_up=sum(one.num_bytes for one in coming.values()),
            dtype=runtime.dtype,
            num_steps=steps,
            bytes_moved=steps * usual.moved_bytes,
            peak_memory_bytes=math.ceil(largest.process_bytes),
        )

    def ranks(self, plan: RankPlan) -> RankPlan:
        """Return the plan with each device at its rank."""
        chosen = {device: choice.rank for device, choice in self.choices.items() if choice.rank}
        return replace(plan, by_device={**plan.by_device, **chosen}) if chosen else plan

    def orders(self, client: ClientInfo) -> Orders:
        """Return what a client is told besides what the strategy tells it."""
        choice = self.choices.get(client.device)
        if choice is None:
            return Orders()
        settings = self.runtime.settings
        return Orders(
            batch_size=choice.batch_size if choice.batch_size != settings.batch_size else 0,
            checkpointing=choice.checkpointing,
            freeze=self._frozen(choice),
        )

    def _frozen(self, choice: Choice) -> tuple[str, ...]:
        layers = len(layers_of(self.runtime.shared_spec))
        return layers_below(self.runtime.shared_spec, layers - choice.layers) if choice.layers else ()

    def _trained(self, choice: Choice) -> frozenset[str]:
        sent = self.runtime.shared_spec
        return Orders(freeze=self._frozen(choice)).trains(sent, sent)


def choices_for(runtime: Runtime, strategy: FedPeft, rank: int) -> list[Choice]:
    """Return the choices of a device that may have this rank at most, best first; the first is the config as it is."""
    found = candidates(
        rank=rank if RANKS in runtime.method.traits else 0,
        batch_size=runtime.settings.batch_size,
        num_layers=len(layers_of(runtime.shared_spec)) if strategy.mixed_layers else 0,
        can_checkpoint=_can_checkpoint(runtime),
        mixed_ranks=strategy.mixed_ranks,
    )
    if not isinstance(runtime.privacy, ExampleLevel):
        return found
    own = (runtime.settings.batch_size, runtime.settings.gradient_checkpointing)
    return [one for one in found if (one.batch_size, one.checkpointing) == own]


def _can_checkpoint(runtime: Runtime) -> bool:
    if runtime.settings.gradient_checkpointing:
        return True
    try:
        runtime.step_flops(0, frozenset(runtime.shared_spec), True)
    except ConfigError:
        return False
    return True
