"""What a round would take on this device, before it takes part in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpeft.server.forecast import Forecast


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A predicted round.

    Attributes:
        forecast: seconds, bytes and memory.
        seq_len: tokens of its texts, the most that the run takes.
        num_steps: optimiser steps.
    """

    forecast: Forecast
    seq_len: int
    num_steps: int

    def text(self) -> str:
        """Return it for people."""
        cost = self.forecast.cost
        memory = "" if cost.peak_memory_mb is None else f", {cost.peak_memory_mb:,.0f} MiB"
        parts = f"{cost.down_s:.1f} down, {cost.compute_s:,.1f} compute, {cost.up_s:.1f} up"
        return (
            f"{cost.total_s:,.1f} s ({parts}){memory} for "
            f"{self.num_steps} steps of {self.forecast.batch_size} texts of {self.seq_len} tokens"
        )


def foresee(profile: str, *, run: Sequence[str], model: str | None, data: Path) -> Foreseen | None:
    """Return what a round would take, None where the model is not on this machine yet.

    Args:
        profile: name of a device profile, or its file.
        run: overrides of the run's config, as on the server's command line.
        model: the device's copy of the base model, None for what the run names.
        data: its examples, which count where the run counts epochs.

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
    blueprint = draw(config, Assumed(num_examples=most_examples(data)), [profile])
    [found] = forecast(blueprint)
    return Foreseen(forecast=found, seq_len=blueprint.seq_len, num_steps=blueprint.num_steps)
