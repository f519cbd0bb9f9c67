"""Which rank each device of the fleet trains at, from the method's settings."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.core.ranks import RankPlan
from fedpeft.device_profiles.assignment import SupportsProfile
from fedpeft.methods.base import Method
from fedpeft.methods.lora import LoRA


def rank_plan(method: Method, fleet: SupportsProfile, devices: Sequence[str]) -> RankPlan:
    """Return rank and scaling of the global model and of each device.

    ``method.ranks`` names device profiles or classes; a profile's own entry goes before its class's.

    Args:
        method: the method; without LoRA's ranks the plan is empty.
        fleet: knows the devices' classes.
        devices: device of each client.
    """
    if not isinstance(method, LoRA):
        return RankPlan()
    ranks = method.ranks or {}
    classes = {device: fleet.profile(device).device_class for device in sorted(set(devices))}
    by_device = {device: ranks.get(device, ranks.get(kind, method.rank)) for device, kind in classes.items()}
    return RankPlan(rank=method.largest, default=method.rank, by_device=by_device, scaling_for=method.scaling_for)
