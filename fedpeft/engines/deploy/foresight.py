"""What a round would take on this device, before it takes part in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedpeft.client.fence import Fence
    from fedpeft.server.forecast import Forecast


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A predicted round.

    Attributes:
        forecast: seconds, bytes and memory.
        seq_len: tokens of its texts, the most that the run takes.
        num_steps: optimiser steps.
        refusals: why the device would not take part, or not end its round.
    """

    forecast: Forecast
    seq_len: int
    num_steps: int
    refusals: Sequence[str] = ()

    def text(self) -> str:
        """Return it for people."""
        cost = self.forecast.cost
        memory = "" if cost.peak_memory_mb is None else f", {cost.peak_memory_mb:,.0f} MiB"
        parts = f"{cost.down_s:.1f} down, {cost.compute_s:,.1f} compute, {cost.up_s:.1f} up"
        return (
            f"{cost.total_s:,.1f} s ({parts}){memory} for "
            f"{self.num_steps} steps of {self.forecast.batch_size} texts of {self.seq_len} tokens"
        )


def foresee(
    profile: str, *, run: Sequence[str], model: str | None, data: Path, fence: Fence | None = None
) -> Foreseen | None:
    """Return what a round would take, None where the model is not on this machine yet.

    Args:
        profile: name of a device profile, or its file.
        run: overrides of the run's config, as on the server's command line.
        model: the device's copy of the base model, None for what the run names.
        data: its examples, which count where the run counts epochs.
        fence: what its operator allows, None for everything.

    Raises:
        ConfigError: the run's config or the profile is wrong, or the method does not fit the model.
        DataError: there are no examples.
    """
    from fedpeft import config as cfg
    from fedpeft.client.assumed import Assumed
    from fedpeft.client.blueprint import draw
    from fedpeft.data.sources import is_here
    from fedpeft.engines.deploy.answering import most_examples
    from fedpeft.server.forecast import forecast

    config = cfg.compose([*run, *([f"model.path={model}"] if model else [])])
    cfg.check(config)
    if not is_here(config["model"]["path"], config["model"]["revision"]):
        return None
    num_examples = most_examples(data)
    if num_examples == 0:
        raise DataError(f"{data} holds no examples (set --data to your file of texts)")
    blueprint = draw(config, Assumed(num_examples=num_examples), [profile])
    [found] = forecast(blueprint)
    refusals = [] if fence is None else _refusals(fence, config, num_examples, found)
    return Foreseen(forecast=found, seq_len=blueprint.seq_len, num_steps=blueprint.num_steps, refusals=refusals)


def _refusals(fence: Fence, config: Mapping[str, Any], num_examples: int, found: Forecast) -> list[str]:
    refusals = []
    try:
        fence.check(config, num_examples=num_examples)
    except ConfigError as error:
        refusals += error.problems
    seconds, memory_mb = found.cost.compute_s, (found.cost.peak_memory_mb or 0.0) * 2**20 / 1e6
    if fence.max_seconds is not None and seconds > fence.max_seconds:
        refusals.append(f"its round takes {seconds:,.0f} s, this device allows {fence.max_seconds:g} (--max-seconds)")
    if fence.max_memory_mb is not None and memory_mb > fence.max_memory_mb:
        limit = f"{fence.max_memory_mb:g} (--max-memory-mb)"
        refusals.append(f"its round takes {memory_mb:,.0f} MB, this device allows {limit}")
    return refusals
