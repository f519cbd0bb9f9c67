"""What example-level privacy adds to a training step: CPU seconds of a DP-SGD step over those of a plain one.

    python benchmarks/dp_step.py [--batches 40] [overrides, e.g. method=prompt model.dtype=float32]

Both train on the same batches, by turns, one torch thread; the ratio is that of the medians. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.private_training import Chance, admit, train_private
from fedpeft.client.runtime import Runtime
from fedpeft.client.trainer import train
from fedpeft.privacy.example_level import ExampleLevel, ExampleLevelRun
from fedpeft.privacy.noise import SecureNormal


class Everyone:
    """Coins that all come up: a private step then has the very batch that it is given."""

    def flip(self, rate: float, count: int) -> np.ndarray:
        """Return ``count`` times true."""
        return np.ones(count, dtype=bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    arguments, overrides = parser.parse_known_args()
    composed = cfg.compose([*overrides, "client.local_steps=1"])
    runtime = build_runtime(new_config({**composed, "run_dir": str(Path("unused"))}))
    rng = np.random.default_rng(0)
    steps = {"plain": plain_step(runtime), "private": private_step(runtime)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    size = runtime.settings.batch_size
    for turn in range(arguments.batches + 3):
        rows = rng.choice(runtime.examples.rows, size, replace=False)
        for name in sorted(steps, reverse=turn % 2 == 1):
            started = time.process_time()
            steps[name](rows)
            if turn >= 3:
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "method": runtime.config["method"].get("_target_"),
                "dtype": runtime.dtype,
                "batch_size": size,
                "batches": arguments.batches,
                "plain_ms": round(1e3 * medians["plain"], 1),
                "private_ms": round(1e3 * medians["private"], 1),
                "ratio": round(medians["private"] / medians["plain"], 3),
            }
        )
    )


def plain_step(runtime: Runtime) -> Callable[[np.ndarray], object]:
    """Return what takes one plain step on some rows, as clients do."""

    def step(rows: np.ndarray) -> object:
        return train(
            runtime.tunable, runtime.examples.task, rows, runtime.settings,
            dtype=runtime.dtype, seed=0, flops=runtime.train_flops,
        )  # fmt: skip

    return step


def private_step(runtime: Runtime) -> Callable[[np.ndarray], object]:
    """Return what takes one DP-SGD step on some rows; hooks are put on and off each time, as for each round."""
    settings = ExampleLevel(noise_multiplier=1.0)
    parameters, size = runtime.tunable.trainable, runtime.settings.batch_size
    run = ExampleLevelRun(
        settings=settings, noise_multiplier=1.0, num_examples=size, batch_size=size, steps=1, rounds=1
    )
    started = time.process_time()
    takes_part = admit(
        runtime.tunable, runtime.examples.task, runtime.examples.rows, parameters,
        mode=settings.mode, dtype=runtime.dtype, what="this method",
    )  # fmt: skip
    print(f"self-test: {time.process_time() - started:.2f} s")

    def step(rows: np.ndarray) -> object:
        return train_private(
            runtime.tunable, runtime.examples.task, rows, runtime.settings, run,
            dtype=runtime.dtype, flops=runtime.train_flops, parameters=parameters, takes_part=takes_part,
            chance=Chance(coins=Everyone(), noise=SecureNormal()),
        )  # fmt: skip

    return step


if __name__ == "__main__":
    main()
