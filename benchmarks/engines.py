"""Our engine, a bare loop over the same clients, and Flower's own simulation with the same apps, side by side.

    python benchmarks/engines.py                        the README's table: 10 and 50 clients, memory, matrix share
    python benchmarks/engines.py --demo --seeds 0 1 2   the demo's job against Flower as its users write it today

Every row is a process of its own, so that start-up and memory are its own; rows that are compared run one after the
other in one go.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fedpeft.engines.memory import tree_mb  # noqa: E402

JOB = [
    "rounds=2",
    "partition=iid",
    "client.local_steps=4",
    "task.held_out=200",
    "report=false",
    "display=none",
    "model.dtype=auto",
]


def run(command: list[str], **environment: str) -> dict[str, Any]:
    """Run a process; return its wall seconds, the peak memory of its tree and the last JSON line that it printed."""
    started = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(2.5):
            peak[0] = max(peak[0], tree_mb(tree(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-2000:]}\n{errors[-4000:]}")
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return {"wall_s": time.monotonic() - started, "peak_mb": peak[0], **(json.loads(lines[-1]) if lines else {})}


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    import psutil

    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


def engine(name: str, overrides: list[str]) -> dict[str, Any]:
    """Run a job on one of our engines and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        done = run(
            [
                sys.executable,
                "-m",
                "fedpeft.cli.main",
                "simulate",
                *overrides,
                f"engine={name}",
                "engine.workers=2",
                f"run_dir={run_dir}",
            ]
        )
        summary = json.loads((run_dir / "summary.json").read_text())
        rounds = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    return done | {
        "train_cpu_s": sum(row["train_cpu_s"] for row in rounds),
        "eval_cpu_s": sum(row["eval_cpu_s"] for row in rounds),
        "rounds_s": sum(row["wall_s"] for row in rounds),
        "workers": summary["workers"],
        "accuracy": summary["final"]["accuracy"],
        "overhead_ratio": summary["overhead_ratio"],
    }


def bare_loop(overrides: list[str]) -> dict[str, Any]:
    """Run the same clients one after the other in one process, without Flower messages."""
    return run([sys.executable, str(HERE / "bare_loop.py"), *overrides]) | {"workers": 1}


def overhead(row: dict[str, Any]) -> float:
    """Return wall seconds of the rounds x workers / CPU seconds in training and evaluation."""
    return row["rounds_s"] * row["workers"] / (row["train_cpu_s"] + row["eval_cpu_s"])


def compare(sizes: list[int], repeats: int, steps: int) -> list[str]:
    """Return the table of engines; the rows of one size take turns, so that a noisy moment meets all of them."""
    lines = [
        "| clients a round | engine | whole process s | rounds s | train CPU s | overhead ratio | peak memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        job = [*JOB, f"client.local_steps={steps}", f"num_clients={size}", f"cohort_size={size}"]
        rows: dict[str, list[dict[str, Any]]] = {"bare loop": [], "inprocess": [], "ray (Flower's simulation)": []}
        for _ in range(repeats):
            rows["bare loop"].append(bare_loop(job))
            rows["inprocess"].append(engine("inprocess", job))
            rows["ray (Flower's simulation)"].append(engine("ray", job))
        for name, measured in rows.items():
            figures = [f"{middle(measured, key):.1f}" for key in ("wall_s", "rounds_s", "train_cpu_s")]
            ratio = statistics.median(overhead(row) for row in measured)
            lines.append(
                f"| {size} | {name} | {' | '.join(figures)} | {ratio:.3f} | {middle(measured, 'peak_mb'):.0f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def middle(rows: list[dict[str, Any]], key: str) -> float:
    """Return the median of one figure."""
    return statistics.median(row[key] for row in rows)


def flatness(sizes: list[int]) -> list[str]:
    """Return the table of memory against registered clients."""
    lines = ["| registered clients (10 a round) | whole process s | peak memory MB |", "|---|---|---|"]
    for size in sizes:
        row = engine("inprocess", [*JOB, f"num_clients={size}", "cohort_size=10", "task.client_test_fraction=0.0"])
        lines.append(f"| {size} | {row['wall_s']:.1f} | {row['peak_mb']:.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def demo(seeds: list[int]) -> list[str]:
    """Return the table of the demo's job against Flower as its users write it today."""
    lines = [
        "| seed | fedpeft s | accuracy | overhead ratio | Flower as written today s | accuracy | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = []
    for seed in seeds:
        job = ["+experiment=demo", "evaluate.clients_every=0", "report=false", "display=none", f"seed={seed}"]
        ours, theirs = engine("inprocess", job), run([sys.executable, str(HERE / "flower_today.py"), *job])
        pairs.append((ours, theirs))
        figures = [f"{ours['wall_s']:.1f}", f"{ours['accuracy']:.4f}", f"{ours['overhead_ratio']:.3f}"]
        figures += [f"{theirs['wall_s']:.1f}", f"{theirs['accuracy']:.4f}", f"{theirs['wall_s'] / ours['wall_s']:.2f}"]
        lines.append(f"| {seed} | {' | '.join(figures)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    faster = statistics.median(theirs["wall_s"] / ours["wall_s"] for ours, theirs in pairs)
    mine, other = (statistics.mean(pair[side]["accuracy"] for pair in pairs) for side in (0, 1))
    return [*lines, "", f"Median {faster:.2f} times faster; mean accuracy {mine:.4f} against {other:.4f}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 50], help="clients a round")
    parser.add_argument("--steps", type=int, default=4, help="training steps of each client")
    parser.add_argument(
        "--registered",
        type=int,
        nargs="*",
        default=[10, 100, 1000, 10000],
        help="registered clients for the memory table",
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes a row; medians are printed")
    parser.add_argument(
        "--demo", action="store_true", help="compare the demo's job with Flower as written today instead"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    if options.demo:
        print("\n".join(demo(options.seeds)))
        return
    share = run([sys.executable, str(HERE / "matrix_share.py")])
    parts = [
        compare(options.sizes, options.repeats, options.steps),
        flatness(options.registered) if options.registered else [],
    ]
    print("\n\n".join("\n".join(part) for part in parts if part))
    print(
        f"\nOne worker's training step runs at {share['step_gflops']:.0f} GFLOP/s, {share['share']:.0%} of this core's "
        f"{share['limit_gflops']:.0f} GFLOP/s in {share['dtype']} matrix products of the step's own sizes."
    )


if __name__ == "__main__":
    main()
