"""Read a run directory: finished, interrupted, or still being written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedpeft.config import is_deployed
from fedpeft.core.errors import FedPeftError, ReportError
from fedpeft.report.fields import Fields
from fedpeft.report.promise import PrivacyView
from fedpeft.report.rows import ClientRow, DataView, EvaluationRow, RoundRow, Sample

_MARKS = ("config.yaml", "rounds.jsonl", "summary.json")
_Row = TypeVar("_Row", RoundRow, ClientRow, EvaluationRow)


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What one run directory holds.

    Attributes:
        path: the directory.
        config: the composed config, empty where there is none.
        config_text: the config as it stands in the file.
        summary: ``summary.json``, empty where there is none yet.
        rounds: one row a round on record, in order; round 0 is the model before training.
        clients: one row a client and round.
        evaluations: one row a client and evaluated round.
        data: who holds what, None where it was not written.
        samples: what a language model said before and after, () where none was asked.
        privacy: what the run promises, None where it promises nothing.
        notes: what the reader had to leave out, for a person.
        ledger_fault: what is wrong with the run's privacy ledgers, empty where nothing is.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str
    summary: Mapping[str, Any]
    rounds: tuple[RoundRow, ...]
    clients: tuple[ClientRow, ...]
    evaluations: tuple[EvaluationRow, ...]
    data: DataView | None
    samples: tuple[Sample, ...]
    privacy: PrivacyView | None
    notes: tuple[str, ...]
    ledger_fault: str = ""

    @property
    def name(self) -> str:
        """The run's name: from the summary, else the config, else the directory."""
        for found in (self.summary.get("name"), self.config.get("name")):
            if isinstance(found, str) and found.strip():
                return found
        return self.path.resolve().name

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``interrupted``, ``failed``, or ``unknown`` where there is no summary."""
        status = self.summary.get("status")
        return status if isinstance(status, str) and status else "unknown"

    @property
    def is_real(self) -> bool:
        """Whether the clients were real devices: their seconds, joules and memory are measured."""
        return is_deployed(self.config)

    @property
    def figures(self) -> Fields:
        """The summary, with typed access."""
        return Fields(str(self.path / "summary.json"), self.summary)


def read_run(path: Path | str) -> RunView:
    """Read a run directory.

    A last line that was cut off in writing is left out and said in ``notes``; missing files are fine as long as one of
    ``config.yaml``, ``rounds.jsonl`` and ``summary.json`` is there. Where a round, or a client's round, is on record
    twice (a resumed run repeated it), the later line counts.

    Raises:
        ReportError: not a run directory, JSON or YAML that cannot be read, or a value of a wrong type.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a directory (give the run directory that `fedpeft simulate` printed)")
    if not any((folder / mark).is_file() for mark in _MARKS):
        raise ReportError(
            f"{folder} is not a run directory: it holds none of {', '.join(_MARKS)} (give the folder of one run)"
        )
    notes: list[str] = []
    config, config_text = _read_config(folder / "config.yaml")
    data_file, privacy_file = folder / "data.json", folder / "privacy.json"
    rounds = _read_rows(folder / "rounds.jsonl", RoundRow.read, lambda row: row.round, notes)
    return RunView(
        path=folder,
        config=config,
        config_text=config_text,
        summary=_read_object(folder / "summary.json"),
        rounds=tuple(sorted(rounds, key=lambda row: row.round)),
        clients=_read_rows(folder / "clients.jsonl", ClientRow.read, lambda row: (row.round, row.client_id), notes),
        evaluations=_read_rows(
            folder / "evaluations.jsonl", EvaluationRow.read, lambda row: (row.round, row.client_id), notes
        ),
        data=DataView.read(Fields(str(data_file), _read_object(data_file))) if data_file.is_file() else None,
        samples=Sample.read_all(Fields(str(folder / "samples.json"), _read_object(folder / "samples.json"))),
        privacy=PrivacyView.read(Fields(str(privacy_file), _read_object(privacy_file)))
        if privacy_file.is_file()
        else None,
        notes=tuple(notes),
        ledger_fault=_ledger_fault(folder) if privacy_file.is_file() else "",
    )


def _ledger_fault(folder: Path) -> str:
    """Return what is wrong with a run's ledgers, without the folder's own path: a page is shown to others."""
    from fedpeft.server.audit import audit_run

    try:
        audit_run(folder)
    except FedPeftError as error:
        return str(error).replace(f"{folder}/", "").replace(str(folder), "this run")
    return ""


def _read_config(path: Path) -> tuple[Mapping[str, Any], str]:
    if not path.is_file():
        return {}, ""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ReportError(f"{path}: cannot be read as YAML: {_one_line(error)} (restore or delete it)") from error
    if config is not None and not isinstance(config, dict):
        raise ReportError(f"{path}: must hold a mapping, got {type(config).__name__} (restore or delete it)")
    return config or {}, text


def _read_object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path}: cannot be read as JSON: {_one_line(error)} (restore or delete it)") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: must hold a JSON object, got {type(value).__name__} (restore or delete it)")
    return value


def _read_rows(
    path: Path, read: Callable[[Fields], _Row], key: Callable[[_Row], Any], notes: list[str]
) -> tuple[_Row, ...]:
    """Read a JSON-lines file; a repeated key keeps its first place and its last content."""
    if not path.is_file():
        return ()
    rows: dict[Any, _Row] = {}
    count = 0
    for fields in _read_lines(path, notes):
        row = read(fields)
        rows[key(row)] = row
        count += 1
    if count > len(rows):
        notes.append(f"{path.name} holds {count - len(rows)} repeated lines (a resumed run); the later ones count.")
    return tuple(rows.values())


def _read_lines(path: Path, notes: list[str]) -> Iterator[Fields]:
    """Yield each object of a JSON-lines file; only the last line may be unreadable."""
    broken: tuple[int, Exception] | None = None
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                if broken:
                    raise ReportError(
                        f"{path} line {broken[0]}: cannot be read as JSON: {_one_line(broken[1])} "
                        "(delete that line, or restore the file)"
                    )
                try:
                    value = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    broken = (number, error)
                    continue
                if not isinstance(value, dict):
                    raise ReportError(
                        f"{path} line {number}: must hold a JSON object, got {type(value).__name__} (delete that line)"
                    )
                yield Fields(f"{path} line {number}", value)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {_one_line(error)} (check its permissions)") from error
    if broken:
        notes.append(f"The last line of {path.name} (line {broken[0]}) was cut off in writing and is left out.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
