"""A believable run directory without a run: what the report is developed and tested on.

Run it by hand to look at one: ``python tests/report/synthetic_run.py DIR [--seed N] [--rounds N] [--clients N]``.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = ("movies", "products", "editorials", "tweets")
LABELS = ("negative", "positive")
DEVICES = {  # name: (downlink bit/s, uplink bit/s, seconds of compute for a round, LoRA rank)
    "phone-low": (10e6, 3e6, 420.0, 4),
    "phone-high": (60e6, 20e6, 95.0, 8),
    "raspberry-pi-4": (40e6, 15e6, 380.0, 4),
    "raspberry-pi-5": (90e6, 30e6, 160.0, 8),
    "jetson-nano": (80e6, 30e6, 120.0, 8),
    "jetson-orin": (150e6, 60e6, 35.0, 16),
    "laptop": (200e6, 80e6, 22.0, 16),
}
POSITIVE = {"movies": 0.59, "products": 0.50, "editorials": 0.40, "tweets": 0.68}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the synthetic run is and how it ended."""

    name: str = "demo-sentiment"
    num_rounds: int = 5
    num_clients: int = 20
    cohort_size: int = 12
    seed: int = 0
    status: str = "finished"
    gain: float = 0.34
    epsilon: bool = False


def write_run(folder: Path, shape: Shape | None = None) -> Path:
    """Write a whole run directory into ``folder`` and return it."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shape.seed)
    clients = _clients(shape, rng)
    rounds, lines, evaluations = [], [], []
    clock = 0.0
    for number in range(1, shape.num_rounds + 1):
        here = _exchange(shape, clients, number, rng)
        ok_seconds = [sum(c["virtual_s"].values()) for c in here if c["outcome"] == "ok"]
        clock += max(ok_seconds, default=0.0)
        evals = _evaluate(shape, clients, number, rng)
        rounds.append(_round(shape, number, here, evals, clock, rng))
        lines += here
        evaluations += evals
    _write_json(folder / "data.json", _data(clients))
    _write_lines(folder / "rounds.jsonl", rounds)
    _write_lines(folder / "clients.jsonl", lines)
    _write_lines(folder / "evaluations.jsonl", evaluations)
    _write_json(folder / "summary.json", _summary(shape, rounds, clock))
    (folder / "config.yaml").write_text(_config(shape))
    return folder


def _clients(shape: Shape, rng: np.random.Generator) -> list[dict[str, Any]]:
    names = list(DEVICES)
    clients = []
    for number in range(shape.num_clients):
        total = int(rng.integers(120, 1400))
        share = rng.dirichlet([0.35] * len(GROUPS))
        groups = {g: round(total * s) for g, s in zip(GROUPS, share, strict=True) if round(total * s)}
        positive = sum(int(n * np.clip(POSITIVE[g] + rng.normal(0, 0.08), 0, 1)) for g, n in groups.items())
        num_examples = sum(groups.values())
        labels = {"negative": num_examples - positive, "positive": positive}
        clients.append(
            {
                "client_id": number,
                "device": names[number % len(names)],
                "num_examples": num_examples,
                "labels": labels,
                "groups": groups,
            }
        )
    return clients


def _exchange(
    shape: Shape, clients: list[dict[str, Any]], number: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    cohort = sorted(rng.choice(len(clients), size=min(shape.cohort_size, len(clients)), replace=False))
    return [_client_line(clients[int(i)], number, rng) for i in cohort]


def _client_line(client: dict[str, Any], number: int, rng: np.random.Generator) -> dict[str, Any]:
    down_bps, up_bps, compute_s, rank = DEVICES[client["device"]]
    adapter, head = rank * 36_864, 296_448
    size = adapter + head
    jitter = float(np.exp(rng.normal(0, 0.15)))
    seconds = {
        "down": size * 8 / down_bps * jitter * 6,
        "compute": compute_s * jitter,
        "up": size * 8 / up_bps * jitter * 6,
    }
    draw = rng.random()
    slow = compute_s > 300
    outcome = "lost" if draw < 0.03 else "late" if slow and draw < 0.25 else "rejected:finite" if draw > 0.975 else "ok"
    came = outcome != "lost"
    line: dict[str, Any] = {
        "round": number,
        "client_id": client["client_id"],
        "device": client["device"],
        "num_examples": client["num_examples"],
        "rank": rank,
        "bytes_down": size,
        "bytes_up": size if came else 0,
        "adapter_bytes": adapter if came else 0,
        "head_bytes": head if came else 0,
        "train_cpu_s": round(6.0 * jitter, 3) if came else 0.0,
        "virtual_s": seconds if came else dict.fromkeys(seconds, 0.0),
        "peak_memory_mb": round(310 + rank * 2.5 * jitter, 1),
        "energy_j": round(compute_s * 4.2 * jitter, 1) if came else None,
        "outcome": outcome,
    }
    if outcome != "ok":
        line["detail"] = {
            "late": "421.8 s, deadline 400.0 s",
            "lost": "device left during upload",
            "rejected:finite": "classifier.weight holds 3 values that are not finite",
        }[outcome]
    return line


def _accuracy(shape: Shape, number: int) -> float:
    return 0.487 + shape.gain * (1 - math.exp(-0.75 * number))


def _evaluate(
    shape: Shape, clients: list[dict[str, Any]], number: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    if number % 2 == 0 and number != shape.num_rounds:
        return []
    rows = []
    for client in clients[:200]:
        accuracy = float(np.clip(_accuracy(shape, number) + rng.normal(0, 0.06), 0.1, 0.99))
        groups = {g: float(np.clip(accuracy + rng.normal(0, 0.03), 0, 1)) for g in client["groups"]}
        rows.append(
            {
                "round": number,
                "client_id": client["client_id"],
                "device": client["device"],
                "num_examples": client["num_examples"] // 5,
                "accuracy": accuracy,
                "loss": 1.1 - accuracy,
                "groups": groups,
            }
        )
    return rows


def _initial(shape: Shape) -> dict[str, float]:
    groups = {f"accuracy/{g}": 0.47 + 0.01 * i for i, g in enumerate(GROUPS)}
    return {"accuracy": _accuracy(shape, 0), "loss": 0.694} | groups


def _round(
    shape: Shape,
    number: int,
    here: list[dict[str, Any]],
    evals: list[dict[str, Any]],
    clock: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for line in here:
        if line["outcome"] != "ok":
            dropped[line["outcome"]] = dropped.get(line["outcome"], 0) + 1
    accuracy = _accuracy(shape, number)
    metrics: dict[str, float] = {"accuracy": accuracy, "loss": 1.12 - accuracy}
    metrics |= {
        f"accuracy/{g}": accuracy + o + float(rng.normal(0, 0.008))
        for g, o in zip(GROUPS, (0.02, 0.0, -0.06, 0.05), strict=True)
    }
    if evals:
        values = sorted(row["accuracy"] for row in evals)
        worst = values[: max(1, len(values) // 10)]
        metrics |= {
            "client_accuracy_mean": float(np.mean(values)),
            "client_accuracy_worst_decile": float(np.mean(worst)),
            "client_loss_mean": 1.1 - float(np.mean(values)),
        }
    return {
        "round": number,
        "cohort_size": len(here),
        "num_replies": len(here) - sum(dropped.values()),
        "dropped": dropped,
        "wall_s": 41.0 + float(rng.normal(0, 2)),
        "train_cpu_s": sum(c["train_cpu_s"] or 0 for c in here),
        "virtual_s": clock / number,
        "virtual_clock_s": clock,
        "bytes_down": sum(c["bytes_down"] for c in here),
        "bytes_up": sum(c["bytes_up"] or 0 for c in here),
        "energy_j": sum(c["energy_j"] or 0 for c in here),
        "train_loss": 1.08 - accuracy,
        "eval": metrics,
        "epsilon": 1.9 * math.sqrt(number) if shape.epsilon else None,
        "eval_cpu_s": 7.5,
        "eval_bytes_down": 700_000 * len(evals),
        "eval_bytes_up": 400 * len(evals),
        "eval_virtual_s": None,
        "kept": None,
    }


def _data(clients: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(c["num_examples"] for c in clients)
    return {
        "num_clients": len(clients),
        "num_train": total,
        "num_eval": total // 6,
        "labels": list(LABELS),
        "groups": list(GROUPS),
        "clients": clients[:200],
    }


def _summary(shape: Shape, rounds: list[dict[str, Any]], clock: float) -> dict[str, Any]:
    last = rounds[-1]["eval"]
    best = max(rounds, key=lambda r: r["eval"]["accuracy"])
    return {
        "status": shape.status,
        "name": shape.name,
        "rounds": len(rounds),
        "initial": _initial(shape),
        "final": last,
        "best": best["eval"],
        "wall_s": sum(r["wall_s"] for r in rounds) + 9.0,
        "startup_s": 9.0,
        "train_cpu_s": sum(r["train_cpu_s"] for r in rounds),
        "eval_cpu_s": 46.0,
        "workers": 2,
        "overhead_ratio": 1.04,
        "bytes_up": sum(r["bytes_up"] + r["eval_bytes_up"] for r in rounds),
        "bytes_down": sum(r["bytes_down"] + r["eval_bytes_down"] for r in rounds),
        "virtual_clock_s": clock,
        "energy_j": sum(r["energy_j"] or 0 for r in rounds),
        "peak_rss_mb": 1287.0,
        "epsilon": rounds[-1]["epsilon"],
        "delta": 1e-5 if shape.epsilon else None,
        "seed": shape.seed,
        "versions": {"fedpeft": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"},
    }


def _config(shape: Shape) -> str:
    return f"""name: {shape.name}
seed: {shape.seed}
rounds: {shape.num_rounds}
num_clients: {shape.num_clients}
cohort_size: {shape.cohort_size}
strategy:
  name: {"fedavg" if shape.seed % 2 == 0 else "hetlora"}
method:
  name: lora
  rank: {8 + 8 * (shape.seed % 2)}
  target_modules: [query, value]
client:
  local_steps: 20
  batch_size: 16
  lr: 0.0005
round:
  deadline_s: 400.0
"""


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--name", default="demo-sentiment")
    parser.add_argument("--epsilon", action="store_true")
    parser.add_argument("--cohort", type=int, default=12)
    arguments = parser.parse_args()
    write_run(
        arguments.folder,
        Shape(
            seed=arguments.seed,
            num_rounds=arguments.rounds,
            num_clients=arguments.clients,
            name=arguments.name,
            epsilon=arguments.epsilon,
            cohort_size=arguments.cohort,
            gain=0.34 - 0.02 * arguments.seed,
        ),
    )
