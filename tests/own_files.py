"""The files that real devices would hold, made of a simulation's split."""

from __future__ import annotations

from pathlib import Path

from fedpeft.client.runtime import Runtime


def write_files(runtime: Runtime, folder: Path) -> list[Path]:
    """Write one jsonl file for each client of a simulated run on a local ``train.jsonl``, its rows in their order."""
    lines = (Path(runtime.config["task"]["path"]) / "train.jsonl").read_text().splitlines(keepends=True)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for client_id in range(runtime.config["num_clients"]):
        rows = runtime.examples.rows[runtime.examples.partition.indices(client_id)]
        files.append(folder / f"client-{client_id}.jsonl")
        files[-1].write_text("".join(lines[row] for row in rows))
    return files
