"""The clients of a federation one after the other in one process: what an engine is measured against.

No messages, no checks, no record, no workers: load, train, average, evaluate.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.state import personal_state
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import weighted_mean
from fedpeft.core.wire import Instruction
from fedpeft.engines.memory import tame_memory


def main() -> None:
    tame_memory()
    config = new_config({**cfg.compose(sys.argv[1:]), "run_dir": str(Path("unused"))})
    runtime = build_runtime(config)
    tensors = runtime.initial
    train_cpu_s = eval_cpu_s = 0.0
    started = time.monotonic()
    for server_round in range(1, config["rounds"] + 1):
        cohort = sorted(
            rng(config["seed"], "cohort", "train", server_round).choice(
                config["num_clients"], config["cohort_size"], replace=False
            )
        )
        updates, weights = [], []
        for client_id in map(int, cohort):
            order = Instruction(tensors=tensors, server_round=server_round, identity=runtime.identity, config={})
            trained = runtime.train(client_id, order, personal_state(config, client_id), 0)
            updates.append(trained.tensors)
            weights.append(runtime.num_train_examples(client_id))
            train_cpu_s += trained.result.cpu_s
        tensors = weighted_mean(updates, weights)
        scores = [runtime.evaluate_shard(tensors, shard) for shard in range(len(runtime.eval_shards))]
        eval_cpu_s += sum(score.cpu_s for score in scores)
    accuracy = sum(s.correct.sum() for s in scores) / sum(s.count.sum() for s in scores)
    print(
        json.dumps(
            {
                "rounds_s": time.monotonic() - started,
                "train_cpu_s": train_cpu_s,
                "eval_cpu_s": eval_cpu_s,
                "accuracy": accuracy,
            }
        )
    )


if __name__ == "__main__":
    main()
