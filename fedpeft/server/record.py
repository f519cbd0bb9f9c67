"""The record of a run: an observer that writes the run directory's tables and summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpeft.core import events
from fedpeft.core.metrics import perplexity
from fedpeft.core.wire import NUM_EXAMPLES
from fedpeft.server import figures
from fedpeft.server.figures import is_evaluation, mean_loss, merit, number, rounded, sum_of, total
from fedpeft.server.files import append_lines, keep_rounds, write_json
from fedpeft.strategies.metrics import aggregate_client_evaluations, group_accuracies

ROUNDS, CLIENTS, EVALUATIONS, SUMMARY = "rounds.jsonl", "clients.jsonl", "evaluations.jsonl", "summary.json"


@dataclass(slots=True)
class _Round:
    """What has happened since the last round was closed."""

    cohort_size: int = 0
    replies: dict[tuple[str, int], events.ClientReplied] = field(default_factory=dict)
    rejected: dict[tuple[str, int], events.ClientRejected] = field(default_factory=dict)
    kept: str | None = None
    aggregated: events.Aggregated | None = None


class RunRecord:
    """Writes ``rounds.jsonl``, ``clients.jsonl``, ``evaluations.jsonl`` and ``summary.json``.

    Args:
        run_dir: the run directory.
        fixed: entries of the summary that never change: name, rounds, workers, seed, versions ...
        started_at: ``time.time()`` at which the process, or this run of a sweep, began.
        group_names: names of the groups, for evaluations.
        task_kind: ``classification`` or ``causal_lm``: what evaluations say.
        memory_mb: measures the memory of the whole process tree.
        resume_after: rounds after this one are cut off from the tables of an earlier process; 0 for a new run.
        initial: the evaluation before training, of an earlier process.
        private: whether what single clients tell of their data stays off the record.
        delta: of the privacy promise, None without one.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        fixed: Mapping[str, Any],
        started_at: float,
        group_names: Sequence[str],
        task_kind: str = "classification",
        memory_mb: Callable[[], float],
        resume_after: int = 0,
        initial: Mapping[str, float] | None = None,
        private: bool = False,
        delta: float | None = None,
    ) -> None:
        self._dir = run_dir
        self._private = private
        self._stopped: str | None = None
        self._left_out: list[str] = []
        self._delta = delta
        self._fixed = dict(fixed)
        self._started_at = started_at
        self._groups = list(group_names)
        self._task_kind = task_kind
        self._memory_mb = memory_mb
        self._initial = dict(initial or {})
        self._initial_cpu_s = 0.0
        self._startup_s = 0.0
        self._peak_mb = 0.0
        self._peak_at = 0.0
        self._round = _Round()
        self._round_started = time.monotonic()
        self._rows = keep_rounds(run_dir / ROUNDS, resume_after)
        for name in (CLIENTS, EVALUATIONS):
            keep_rounds(run_dir / name, resume_after)
        self._earlier_s = sum(row["wall_s"] for row in self._rows)

    def __call__(self, event: events.Event) -> None:
        """Take note of an event."""
        match event:
            case events.ExchangeStarted(kind="train"):
                self._round.cohort_size = event.cohort_size
            case events.ClientReplied():
                self._round.replies[event.kind, event.client_id] = event
            case events.ClientRejected():
                self._round.rejected[event.kind, event.client_id] = event
            case events.Aggregated():
                self._round.aggregated = event
            case events.RoundKept():
                self._round.kept = event.reason
            case events.RunStopped():
                self._stopped = event.reason
            case events.ClientLeftOut():
                self._left_out.append(event.reason)
        self._sample_memory()

    @property
    def rounds_done(self) -> int:
        """Number of the last round on record, 0 before the first."""
        return int(self._rows[-1]["round"]) if self._rows else 0

    def started(self) -> None:
        """The first round is about to begin."""
        self._startup_s = time.time() - self._started_at
        self._round_started = time.monotonic()

    def initial(self, metrics: Mapping[str, float], cpu_s: float) -> None:
        """Note the evaluation before training."""
        self._initial, self._initial_cpu_s = dict(metrics), cpu_s
        self.write_summary("running")

    def close_round(
        self,
        server_round: int,
        metrics: Mapping[str, float],
        eval_cpu_s: float,
        now_s: float,
        notes: Mapping[str, Any],
        epsilon: float | None = None,
    ) -> dict[str, Any]:
        """Write the round's lines and return its line in ``rounds.jsonl``.

        Args:
            server_round: the round.
            metrics: the evaluation after it.
            eval_cpu_s: CPU seconds that the server's evaluation took.
            now_s: the virtual clock.
            notes: what the strategy says of itself.
            epsilon: what has been spent so far, None for a run without privacy.
        """
        # An exchange's events arrive in the order of replies, which the scheduler decides; the tables go by client.
        done, self._round = self._round, _Round()
        trained = [event for (kind, _), event in sorted(done.replies.items()) if kind == "train"]
        evaluated = [event for (kind, _), event in sorted(done.replies.items()) if kind == "evaluate"]
        evaluated_well = [event for event in evaluated if self._outcome(event, done) == "ok"]
        # Late clients did their work; what a rejected one claims of its own counts for nothing.
        trusted = [event for event in trained if ("train", event.client_id) not in done.rejected]
        good = [event for event in trained if self._outcome(event, done) == "ok"]
        clients = [self._client_row(server_round, event, done) for event in trained]
        wall_s, self._round_started = time.monotonic() - self._round_started, time.monotonic()
        before_s = self._rows[-1]["virtual_clock_s"] if self._rows else 0.0
        eval_virtual_s = _waited_s(evaluated)
        row = {
            "round": server_round,
            "cohort_size": done.cohort_size,
            "num_replies": len(good),
            "dropped": self._dropped("train", trained, done),
            "wall_s": round(wall_s, 4),
            "train_cpu_s": round(sum_of(trusted, "train-cpu-s"), 4),
            "virtual_s": round(max(0.0, now_s - before_s - eval_virtual_s), 6),
            "virtual_clock_s": round(now_s, 6),
            **_traffic(trained),
            "energy_j": total(event.cost.energy_j for event in trained),
            "train_loss": None if self._private else mean_loss(good),
            "eval": {**metrics, **self._client_figures(evaluated_well)},
            "epsilon": epsilon,
            "eval_cpu_s": round(eval_cpu_s + sum_of(evaluated_well, "eval-cpu-s"), 4),
            "eval_dropped": self._dropped("evaluate", evaluated, done),
            **_traffic(evaluated, "eval_"),
            "eval_virtual_s": round(eval_virtual_s, 6),
            "strategy": dict(notes),
            "kept": done.kept,
            "aggregate_s": round(done.aggregated.seconds, 6) if done.aggregated else None,
            "product_error": done.aggregated.product_error if done.aggregated else None,
        }
        self._rows.append(row)
        append_lines(self._dir / CLIENTS, clients)
        append_lines(self._dir / EVALUATIONS, [self._evaluation_row(server_round, event) for event in evaluated_well])
        append_lines(self._dir / ROUNDS, [row])
        self.write_summary("running")
        return row

    def write_summary(self, status: str) -> dict[str, Any]:
        """Write ``summary.json`` and return what it holds."""
        self._sample_memory(now=True)
        rounds = self._rows
        wall_s = time.time() - self._started_at + self._earlier_s
        train_cpu_s = sum(row["train_cpu_s"] for row in rounds)
        eval_cpu_s = self._initial_cpu_s + sum(row["eval_cpu_s"] for row in rounds)
        spent = train_cpu_s + eval_cpu_s
        workers = self._fixed["workers"]
        summary = {
            "status": status,
            "stopped": self._stopped,
            "left_out": list(dict.fromkeys(self._left_out)),
            **self._fixed,
            "rounds": len(rounds),
            "initial": self._initial,
            "final": rounds[-1]["eval"] if rounds else self._initial,
            "best": max((row["eval"] for row in rounds), key=merit, default=self._initial),
            "wall_s": round(wall_s, 3),
            "startup_s": round(self._startup_s, 3),
            "train_cpu_s": round(train_cpu_s, 3),
            "eval_cpu_s": round(eval_cpu_s, 3),
            "overhead_ratio": round((wall_s - self._startup_s) * workers / spent, 4) if spent and workers else None,
            "bytes_up": sum(row["bytes_up"] + row["eval_bytes_up"] for row in rounds),
            "bytes_down": sum(row["bytes_down"] + row["eval_bytes_down"] for row in rounds),
            "virtual_clock_s": rounds[-1]["virtual_clock_s"] if rounds else 0.0,
            "energy_j": total(row["energy_j"] for row in rounds),
            "peak_rss_mb": round(self._peak_mb, 1),
            "epsilon": rounds[-1]["epsilon"] if rounds else None,
            "delta": self._delta,
        }
        write_json(self._dir / SUMMARY, summary)
        return summary

    def _sample_memory(self, now: bool = False) -> None:
        # Reading the kernel's figure walks page tables and holds up the workers for tens of milliseconds.
        if now or time.monotonic() - self._peak_at > 10.0:
            self._peak_at = time.monotonic()
            self._peak_mb = max(self._peak_mb, self._memory_mb())

    def _outcome(self, event: events.ClientReplied, done: _Round) -> str:
        rejection = done.rejected.get((event.kind, event.client_id))
        return f"rejected:{rejection.check}" if rejection else event.outcome

    def _dropped(self, kind: str, events: list[events.ClientReplied], done: _Round) -> dict[str, int]:
        outcomes = Counter(self._outcome(event, done) for event in events)
        # In asynchronous rounds a reply of an earlier one may be too old to count.
        outcomes += Counter(
            f"rejected:{one.check}" for key, one in done.rejected.items() if key[0] == kind and key not in done.replies
        )
        return {outcome: count for outcome, count in sorted(outcomes.items()) if outcome != "ok"}

    def _client_row(self, server_round: int, event: events.ClientReplied, done: _Round) -> dict[str, Any]:
        outcome = self._outcome(event, done)
        rejection = done.rejected.get((event.kind, event.client_id))
        row = {
            "round": server_round,
            "client_id": event.client_id,
            "device": event.device,
            "num_examples": None if self._private else event.num_examples,
            "rank": event.rank,
            "bytes_down": event.bytes_down,
            "bytes_up": event.bytes_up,
            "adapter_bytes": int(number(event.metrics.get("adapter-bytes"))),
            "head_bytes": int(number(event.metrics.get("head-bytes"))),
            "train_cpu_s": round(number(event.metrics.get("train-cpu-s")), 4),
            "virtual_s": figures.legs(event.cost),
            "peak_memory_mb": rounded(event.cost.peak_memory_mb, 1),
            "energy_j": rounded(event.cost.energy_j, 3),
            "outcome": outcome,
            **figures.predicted_columns(event),
        }
        if outcome == "ok":
            return row
        # A check names what it measured, e.g. the length of a client's change.
        hidden = rejection is not None and self._private
        detail = rejection.reason if rejection else event.detail
        return row | {"detail": "not told, because the run is private" if hidden else detail}

    def _client_figures(self, evaluated: list[events.ClientReplied]) -> dict[str, float]:
        """Return the figures of an evaluation on the clients, {} without one."""
        record = aggregate_client_evaluations(
            {event.client_id: event.metrics for event in evaluated if is_evaluation(event.metrics)}, self._task_kind
        )
        if record is None:
            return {}
        figures = {name: float(value) for name, value in record.items() if name.startswith("client_")}  # type: ignore[arg-type]
        if len(record.get("group-count", [])) == len(self._groups):  # type: ignore[arg-type]
            name = "client_token_accuracy" if self._task_kind == "causal_lm" else "client_accuracy"
            figures |= group_accuracies(name, self._groups, record["group-correct"], record["group-count"])  # type: ignore[arg-type]
        return figures

    def _evaluation_row(self, server_round: int, event: events.ClientReplied) -> dict[str, Any]:
        correct, count = (event.metrics.get(f"group-{name}", []) for name in ("correct", "count"))
        groups = {name: c / n for name, c, n in zip(self._groups, correct, count, strict=False) if n}  # type: ignore[arg-type]
        accuracy, loss = number(event.metrics.get("eval-accuracy")), number(event.metrics.get("eval-loss"))
        causal = self._task_kind == "causal_lm"
        return {
            "round": server_round,
            "client_id": event.client_id,
            "device": event.device,
            "num_examples": int(number(event.metrics.get(NUM_EXAMPLES))),
            **({"perplexity": perplexity(loss), "token_accuracy": accuracy} if causal else {"accuracy": accuracy}),
            "loss": loss,
            "groups": groups,
        }


def _waited_s(evaluated: Sequence[events.ClientReplied]) -> float:
    """Return what the clock moved by: until the last evaluation came, and the last client that left was gone."""
    return max((event.cost.total_s for event in evaluated if event.outcome in ("ok", "left")), default=0.0)


def _traffic(events: Sequence[events.ClientReplied], prefix: str = "") -> dict[str, int]:
    """Return the bytes of a round's exchanges, each way."""
    return {
        f"{prefix}bytes_down": sum(event.bytes_down for event in events),
        f"{prefix}bytes_up": sum(event.bytes_up for event in events),
    }
