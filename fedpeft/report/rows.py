"""The lines of a run directory as typed, frozen rows. Reading one checks its types and names what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from fedpeft.core.errors import ReportError

_ADVICE = "the file was edited or is damaged: restore it from a copy, or delete it"


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object and where it came from.

    Attributes:
        where: file and line, for messages.
        values: the object itself.
    """

    where: str
    values: Mapping[str, Any]

    def number(self, name: str) -> float | None:
        """Return a float; None where the key is missing, null, or not finite."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None

    def integer(self, name: str) -> int | None:
        """Return an int; None where the key is missing or null."""
        value = self.values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.wrong(name, "a whole number", value)
        return value

    def key(self, name: str) -> int:
        """Return an int that must be there and must not be negative."""
        value = self.integer(name)
        if value is None or value < 0:
            raise self.wrong(name, "a whole number from 0", value)
        return value

    def text(self, name: str, default: str = "") -> str:
        """Return a string, shared between rows that hold the same one."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "text", value)
        return intern(value) if value is not None else default

    def mapping(self, name: str) -> Fields:
        """Return an object; an empty one where the key is missing or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object", value)
        return Fields(f"{self.where}, {name}", value or {})

    def numbers(self, name: str) -> dict[str, float]:
        """Return an object of numbers, without those that are null or not finite."""
        inner = self.mapping(name)
        found = {intern(key): inner.number(key) for key in inner.values}
        return {key: value for key, value in found.items() if value is not None}

    def counts(self, name: str) -> dict[str, int]:
        """Return an object of whole numbers, without those that are null."""
        inner = self.mapping(name)
        found = {intern(key): inner.integer(key) for key in inner.values}
        return {key: value for key, value in found.items() if value is not None}

    def values_of(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers, 0 for those that are null or not finite; () where the key is missing or null."""
        value = self.values.get(name) or []
        if not isinstance(value, list):
            raise self.wrong(name, "a list of numbers", value)
        return tuple(Fields(self.where, {name: item}).number(name) or 0.0 for item in value)

    def names(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of names", value)
        return tuple(value)

    def wrong(self, name: str, wanted: str, got: object) -> ReportError:
        """Return the error that says ``name`` is not what it should be."""
        return ReportError(f"{self.where}: {name} must be {wanted}, got {got!r:.60} ({_ADVICE})")


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
            "epsilon",
            "product_error",
        )
        return cls(
            round=fields.key("round"),
            cohort_size=fields.integer("cohort_size"),
            num_replies=fields.integer("num_replies"),
            dropped=fields.counts("dropped"),
            eval=fields.numbers("eval"),
            kept=fields.text("kept"),
            strategy=fields.mapping("strategy"),
            **{name: fields.number(name) for name in numbers},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """One line of ``clients.jsonl``: what one client did in one round. ``*_s`` are virtual seconds."""

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

    @classmethod
    def read(cls, fields: Fields) -> ClientRow:
        """Read one line. Raises ReportError where a type is wrong."""
        seconds = fields.mapping("virtual_s")
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
    """``data.json``: who holds what."""

    num_clients: int | None
    num_train: int | None
    num_eval: int | None
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    clients: tuple[ClientData, ...]

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
        )
