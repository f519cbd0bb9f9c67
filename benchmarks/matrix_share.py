"""How much of one core's matrix-multiply limit the demo's training step reaches.

The limit is what torch reaches on bare products of the step's own shapes (batch x length rows, the model's widths) in
the same process; the step is timed as clients run it, everything included.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.trainer import train
from fedpeft.engines.memory import tame_memory

ROWS, WIDTH, INNER = 448, 384, 1536


def main() -> None:
    tame_memory()
    import torch

    runtime = build_runtime(
        new_config({**cfg.compose(["+experiment=demo", "client.local_steps=16"]), "run_dir": str(Path("unused"))})
    )
    dtype = getattr(torch, runtime.dtype)
    steps, limits = [], []
    for seed in range(6):
        result = train(
            runtime.tunable,
            runtime.examples.task,
            runtime.examples.rows,
            runtime.settings,
            dtype=runtime.dtype,
            seed=seed,
            flops=runtime.train_flops,
        )
        steps.append(result.flops / result.cpu_s / 1e9)
        limits.append(limit(torch, dtype))
    step, most = statistics.median(steps), statistics.median(limits)
    print(json.dumps({"step_gflops": step, "limit_gflops": most, "share": step / most, "dtype": runtime.dtype}))


def limit(torch, dtype) -> float:  # type: ignore[no-untyped-def]
    """Return GFLOP/s over the four products of a transformer layer's forward pass."""
    rows = torch.randn(ROWS, WIDTH).to(dtype)
    wide = torch.randn(ROWS, INNER).to(dtype)
    square, up, down = (torch.randn(*shape).to(dtype) for shape in ((WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH)))
    flops = 2 * ROWS * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    started, repeats = time.process_time(), 40
    for _ in range(repeats):
        for _ in range(4):
            rows @ square
        rows @ up
        wide @ down
    return flops * repeats / (time.process_time() - started) / 1e9


if __name__ == "__main__":
    main()
