"""What a run on hard devices or under privacy adds to a synthetic run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpeft.core.events import ClientReplied
from fedpeft.core.types import Cost

USABLE_MIB = {
    "phone-low": 330.0,
    "phone-high": 2_100.0,
    "raspberry-pi-4": 900.0,
    "raspberry-pi-5": 1_900.0,
    "jetson-nano": 640.0,
    "jetson-orin": 1_400.0,
    "laptop": 2_600.0,
}
PROMISE: dict[str, Any] = {
    "unit": "one client",
    "adjacency": "add or remove one client with all its data, in all its rounds",
    "mechanism": "changes clipped as one vector, summed, noised at the server, divided by 12; equal weights",
    "sampling": "Poisson cohorts of 12 expected among 20 registered clients",
    "noise_multiplier": 1.21,
    "clip_norm": 0.5,
    "sampling_rate": 0.6,
    "steps": 5,
    "delta": 1e-5,
    "epsilon": 7.9312,
    "accountant": "pld",
    "trust": "the server, which sees every client's update; whoever sees the models only is what it protects from",
    "epsilon_rdp": 8.61,
    "not_covered": [
        "who was in which cohort, and how many answered: amplification by sampling counts on its staying secret",
        "what clients say of themselves when they join (examples, device), and the time and size of their messages",
        "the data that the server itself evaluates and searches on",
    ],
    "warnings": [],
    "noise_multiplier_most": None,
    "sampling_rate_least": None,
    "steps_least": None,
}


def write_privacy(folder: Path, **changes: Any) -> Path:
    """Write a client-level promise with some entries changed; return the folder."""
    (folder / "privacy.json").write_text(json.dumps({**PROMISE, "spent": 4.25, "releases": 5, **changes}))
    return folder


def write_usable_memory(folder: Path) -> Path:
    """Put the devices' usable memory into ``data.json``; return the folder."""
    path = folder / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"usable_memory_mb": USABLE_MIB}))
    return folder


def make_hard(folder: Path) -> Path:
    """Turn some good replies of each round into memory, left and surplus ones, in both tables; return the folder."""
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for row in rounds:
        here = [line for line in lines if line["round"] == row["round"]]
        for line in here:
            if line["device"] == "phone-low":
                detail = "346 MiB are needed, the device has 330 (MiB)"
                line |= {"outcome": "memory", "detail": detail, "peak_memory_mb": 346.0, "energy_j": None}
                line |= {"bytes_down": 0, "bytes_up": 0, "virtual_s": dict.fromkeys(line["virtual_s"], 0.0)}
        good = [line for line in here if line["outcome"] == "ok"]
        good[0] |= {"outcome": "left", "detail": "gone after 31.0 of 95.2 simulated seconds"}
        for line in good[-2:]:
            detail = "the round had its 7 replies after 190.0 simulated seconds"
            line |= {"outcome": "surplus", "detail": detail}
        outcomes = [line["outcome"] for line in here if line["outcome"] != "ok"]
        row["dropped"] = {name: outcomes.count(name) for name in sorted(set(outcomes))}
        row["num_replies"] = len(here) - len(outcomes)
    (folder / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rounds))
    return folder


def make_silent(folder: Path) -> Path:
    """Take from the client tables what a private run does not put on record; return the folder."""
    for name, keys in (
        ("clients.jsonl", ("num_examples", "train_cpu_s")),
        ("evaluations.jsonl", ("num_examples", "loss", "accuracy", "groups")),
    ):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        (folder / name).write_text("".join(json.dumps(line | dict.fromkeys(keys)) + "\n" for line in lines))
    return folder


def reply(client_id: int = 0, energy_j: float | None = None, outcome: str = "ok", kind: str = "train") -> ClientReplied:
    """Return the event of a client's reply in round 1."""
    return ClientReplied(
        server_round=1,
        kind=kind,
        client_id=client_id,
        device="laptop",
        num_examples=5,
        rank=4,
        bytes_down=1000,
        bytes_up=500,
        cost=Cost(down_s=1, compute_s=1, up_s=1, energy_j=energy_j),
        metrics={},
        outcome=outcome,
    )
