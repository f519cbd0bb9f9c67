"""The lines of a run directory as typed, frozen rows. Reading one checks its types and names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.report.fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One line of ``rounds.jsonl``; None where a number is unknown or does not apply."""

    round: int
    cohort_size: int | None
    num_replies: int | None
    dropped: Mapping[str, int]
    wall_s: float | None
    train_cpu_s: float | None
    virtual_s: float | None
    virtual_clock_s: float | None
    bytes_down: float | None
    bytes_up: float | None
    eval_bytes_down: float | None
    eval_bytes_up: float | None
    energy_j: float | None
    train_loss: float | None
    eval: Mapping[str, float]
    epsilon: float | None
    product_error: float | None
    kept: str
    strategy: Fields

    @classmethod
    def read(cls, fields: Fields) -> RoundRow:
        """Read one line. Raises ReportError where a type is wrong."""
        numbers = (
            "wall_s",
            "train_cpu_s",
            "virtual_s",
            "virtual_clock_s",
            "bytes_down",
            "bytes_up",
            "eval_bytes_down",
            "eval_bytes_up",
            "energy_j",
            "train_loss",
            "product_error",
        )
        return cls(
            round=fields.key("round"),
            cohort_size=fields.integer("cohort_size"),
            num_replies=fields.integer("num_replies"),
            dropped=fields.counts("dropped"),
            eval=fields.numbers("eval"),
            kept=fields.text("kept"),
            epsilon=fields.epsilon("epsilon"),
            strategy=fields.mapping("strategy"),
            **{name: fields.number(name) for name in numbers},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """One line of ``clients.jsonl``: what one client did in one round; ``*_s`` by the run's clock, memory in MiB."""

    round: int
    client_id: int
    device: str
    num_examples: int | None
    rank: int | None
    bytes_down: float | None
    bytes_up: float | None
    adapter_bytes: float | None
    head_bytes: float | None
    down_s: float | None
    compute_s: float | None
    up_s: float | None
    peak_memory_mb: float | None
    energy_j: float | None
    outcome: str
    detail: str
    predicted_s: tuple[float, float, float] | None = None
    predicted_memory_mb: float | None = None

    @classmethod
    def read(cls, fields: Fields) -> ClientRow:
        """Read one line. Raises ReportError where a type is wrong."""
        seconds, predicted = fields.mapping("virtual_s"), fields.mapping("predicted_s")
        expected = [predicted.number(leg) for leg in ("down", "compute", "up")]
        numbers = ("bytes_down", "bytes_up", "adapter_bytes", "head_bytes", "peak_memory_mb", "energy_j")
        return cls(
            round=fields.key("round"),
            client_id=fields.key("client_id"),
            device=fields.text("device", "unknown"),
            num_examples=fields.integer("num_examples"),
            rank=fields.integer("rank"),
            down_s=seconds.number("down"),
            compute_s=seconds.number("compute"),
            up_s=seconds.number("up"),
            outcome=fields.text("outcome", "unknown"),
            detail=fields.text("detail"),
            predicted_s=None if None in expected else tuple(expected),  # type: ignore[arg-type]
            predicted_memory_mb=fields.number("predicted_memory_mb"),
            **{name: fields.number(name) for name in numbers},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One line of ``evaluations.jsonl``: how the model of one round did on one client's own data."""

    round: int
    client_id: int
    device: str
    num_examples: int | None
    accuracy: float | None
    perplexity: float | None
    loss: float | None

    def by(self, measure: str) -> float | None:
        """Return ``accuracy`` or ``perplexity``."""
        return self.perplexity if measure == "perplexity" else self.accuracy

    @classmethod
    def read(cls, fields: Fields) -> EvaluationRow:
        """Read one line. Raises ReportError where a type is wrong."""
        return cls(
            round=fields.key("round"),
            client_id=fields.key("client_id"),
            device=fields.text("device", "unknown"),
            num_examples=fields.integer("num_examples"),
            accuracy=fields.number("accuracy"),
            perplexity=fields.number("perplexity"),
            loss=fields.number("loss"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One entry of ``samples.json``: a prompt and what followed it, in the data and from the model."""

    prompt: str
    reference: str
    initial: str
    final: str

    @classmethod
    def read_all(cls, fields: Fields) -> tuple[Sample, ...]:
        """Read the whole file. Raises ReportError where a type is wrong."""
        items = fields.values.get("samples") or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise fields.wrong("samples", "a list of objects", items)
        rows = [Fields(f"{fields.where}, sample {number}", item) for number, item in enumerate(items)]
        return tuple(
            cls(**{name: row.text(name) for name in ("prompt", "reference", "initial", "final")}) for row in rows
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientData:
    """What one client holds: counts of training examples by label and by group."""

    client_id: int
    device: str
    num_examples: int | None
    labels: Mapping[str, int]
    groups: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataView:
    """``data.json``: who holds what.

    Attributes:
        usable_memory_mb: MiB that training may take, by device name; empty where the file does not say.
    """

    num_clients: int | None
    num_train: int | None
    num_eval: int | None
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    clients: tuple[ClientData, ...]
    usable_memory_mb: Mapping[str, float]

    @classmethod
    def read(cls, fields: Fields) -> DataView:
        """Read the whole file. Raises ReportError where a type is wrong."""
        items = fields.values.get("clients") or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise fields.wrong("clients", "a list of objects", items)
        rows = [Fields(f"{fields.where}, client {number}", item) for number, item in enumerate(items)]
        clients = tuple(
            ClientData(
                client_id=row.key("client_id"),
                device=row.text("device", "unknown"),
                num_examples=row.integer("num_examples"),
                labels=row.counts("labels"),
                groups=row.counts("groups"),
            )
            for row in rows
        )
        return cls(
            num_clients=fields.integer("num_clients"),
            num_train=fields.integer("num_train"),
            num_eval=fields.integer("num_eval"),
            labels=fields.names("labels"),
            groups=fields.names("groups"),
            clients=clients,
            usable_memory_mb=fields.numbers("usable_memory_mb"),
        )
