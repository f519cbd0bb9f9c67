"""The default engine: forked single-thread workers on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, RecordDict

from fedpeft import config as cfg
from fedpeft.client.app import build_app
from fedpeft.client.building import runtime_for
from fedpeft.client.holdings import describe_data
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.errors import EngineError
from fedpeft.core.events import Preparing, tell
from fedpeft.core.types import Tensors
from fedpeft.engines.grid import InProcessGrid, handle
from fedpeft.engines.memory import freeze_heap, tame_memory, tree_mb
from fedpeft.engines.pool import ForkPool
from fedpeft.engines.session import Start, close_session, count_workers, on_record, open_session, travelling
from fedpeft.server.app import build_server_app
from fedpeft.server.evaluate import ShardMap
from fedpeft.server.privacy import promise, tell_promise
from fedpeft.tasks.base import Scores


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """Runs clients in forked workers, one torch thread each, that share the frozen base model by copy-on-write.

    Args:
        workers: processes, or ``auto`` for one on each core that this process may use.

    Raises:
        ConfigError: workers is neither.
    """

    workers: int | str = "auto"

    def __post_init__(self) -> None:
        count_workers(self.workers)

    def run(self, config: cfg.Config, start: Start) -> dict[str, Any]:
        """Run a config to its end and return the summary; Ctrl-C is recorded and raised again."""
        # Worker processes inherit this: a tokenizer's threads do not survive a fork.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tame_memory()
        config_json = travelling(config)
        tell(start.observers, Preparing(what="loading model and data"))
        runtime = runtime_for(config_json, None)
        client_app = build_app(config_json, None)
        # Before the fork, so that workers inherit the rows of the clients that it looks up.
        holdings = describe_data(runtime)
        # Likewise before the fork: what the self-test admitted once, no worker has to test again.
        promised = promise(runtime, start.checkpoint.state if start.checkpoint else {})
        tell_promise(start.observers, promised)
        # Counted once here instead of in every worker.
        _ = runtime.train_flops, runtime.eval_flops
        freeze_heap()
        pool = ForkPool(
            min(count_workers(self.workers), config["cohort_size"]),
            {
                "message": lambda payload: handle(client_app, payload),
                "shard": lambda payload: runtime.evaluate_shard(*payload),
            },
        )
        try:
            session = open_session(
                runtime,
                start,
                holdings=holdings,
                shard_map=_pool_shard_map(pool, runtime),
                workers=len(pool.pids),
                memory_mb=lambda: tree_mb([os.getpid(), *pool.pids]),
                promise=promised,
            )
            grid = InProcessGrid(
                pool,
                client_app,
                num_clients=config["num_clients"],
                seed=config["seed"],
                node_config=lambda client_id: {"device": runtime.devices[client_id]},
                expected_work=lambda client_id, message: runtime.expected_tokens(
                    client_id, message.metadata.message_type, wire.round_of(message.content)
                ),
            )
            context = Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
            with on_record(session):
                build_server_app(session)(grid, context)
            return close_session(session, "finished")
        finally:
            pool.close()


def _pool_shard_map(pool: ForkPool, runtime: Runtime) -> ShardMap:
    """Spread the server's evaluation over the pool; a part whose worker died is done again once."""

    def run(tensors: Tensors, shards: Sequence[int]) -> Iterator[tuple[int, Scores]]:
        longest_first = sorted(shards, key=runtime.shard_tokens, reverse=True)
        tasks = {pool.submit("shard", (tensors, shard)): (shard, True) for shard in longest_first}
        while tasks:
            for done in pool.collect(timeout=1.0):
                if done.task_id not in tasks:
                    continue
                shard, may_retry = tasks.pop(done.task_id)
                if done.lost and may_retry:
                    tasks[pool.submit("shard", (tensors, shard))] = (shard, False)
                elif done.error is not None:
                    raise EngineError(f"the server's evaluation failed: {done.error}")
                else:
                    yield shard, done.value

    return run
