"""A device that runs out of memory: reported as such, and the rounds after it are smaller.

    python -m pytest -m slow tests/deploy/test_short_of_memory.py -s

fine-tunes MiniLM on two devices, one of which has 850 MB, and prints what became of each round there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy as maker
from real_federation import federation, write_own_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SHORT, LIMIT_MB, ROUNDS = 1, 850, 3


def write_long_texts(folder: Path) -> Path:
    """Write texts that fill the model's 128 tokens."""
    path = maker.write_data(folder, rows=300)
    for file in path.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "text": f"{row['text']} " * 30}) + "\n" for row in rows))
    return path


def test_a_round_after_lack_of_memory_fits(tmp_path: Path) -> None:
    data = write_long_texts(tmp_path / "data")
    overrides = ["model=minilm", "task=text_classification", f"task.path={data}", "partition=iid", "num_clients=2"]
    overrides += ["cohort_size=2", f"rounds={ROUNDS}", "devices.availability=false", "task.held_out=40"]
    overrides += ["client.local_steps=2", "client.batch_size=64", "model.max_length=128", "evaluate.clients_every=0"]
    overrides += ["devices.fit=true"]
    files = write_own_files(overrides, tmp_path)
    with federation(tmp_path, files, overrides) as made:
        made.start_server("report=false")
        for number in range(2):
            made.start_client(number, *(("--max-memory-mb", str(LIMIT_MB)) if number == SHORT else ()))
        assert made.wait_until_done(600) == 0, made.everything()
    rows = [json.loads(line) for line in (made.run_dir / "clients.jsonl").read_text().splitlines()]
    theirs = [row for row in rows if row["client_id"] == SHORT]
    for row in theirs:
        print(f"round {row['round']}: {row['outcome']}, {row['peak_memory_mb']} MiB, {row.get('detail', '')[:80]}")
    assert "out of memory: this device allows" in theirs[0]["detail"]
    assert [row["outcome"] for row in theirs] == ["error"] + ["ok"] * (ROUNDS - 1)
    whole = [row["peak_memory_mb"] for row in rows if row["client_id"] != SHORT]
    assert max(row["peak_memory_mb"] for row in theirs[1:]) < 0.9 * min(whole)
    assert {row["outcome"] for row in rows if row["client_id"] != SHORT} == {"ok"}
