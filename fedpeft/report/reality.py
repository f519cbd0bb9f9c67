"""What real devices took beside what was predicted for them."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.report import numbers, outcomes, series
from fedpeft.report.blocks import Table
from fedpeft.report.reader import RunView
from fedpeft.report.rows import ClientRow

MOST_CLIENTS = 50


def predicted_and_measured(view: RunView) -> Table | None:
    """Return a table of medians by client, predicted / measured; None where nothing was predicted for real devices."""
    rows = [row for row in view.clients if row.predicted_s is not None and row.outcome not in outcomes.SILENT]
    clients = sorted({row.client_id for row in rows})
    if not clients:
        return None
    shown = tuple(_line(client, [row for row in rows if row.client_id == client]) for client in clients[:MOST_CLIENTS])
    cut = f" The first {MOST_CLIENTS} of {len(clients)} clients." if len(clients) > MOST_CLIENTS else ""
    return Table(
        caption="Predicted / measured",
        head=("client", "device", "rounds", "download", "compute", "upload and waiting", "whole", "peak memory"),
        rows=shown,
        text_columns=frozenset({0, 1}),
        note="Medians over a client's rounds. Predicted for the profile that the device tells of itself; a real upload "
        f"holds the waiting of both ends for each other.{cut}",
    )


def _line(client: int, rows: Sequence[ClientRow]) -> tuple[str, ...]:
    legs = [
        _pair(
            [row.predicted_s[leg] for row in rows if row.predicted_s], [measured[leg] for measured in _measured(rows)]
        )
        for leg in range(3)
    ]
    whole = _pair([sum(row.predicted_s) for row in rows if row.predicted_s], [sum(one) for one in _measured(rows)])
    memory = " / ".join(
        numbers.memory(series.median(values))
        for values in ([row.predicted_memory_mb for row in rows], [row.peak_memory_mb for row in rows])
    )
    return (str(client), numbers.name(rows[0].device, 28), numbers.count(len(rows)), *legs, whole, memory)


def _measured(rows: Sequence[ClientRow]) -> list[tuple[float, float, float]]:
    found = [(row.down_s, row.compute_s, row.up_s) for row in rows]
    return [one for one in found if None not in one]  # type: ignore[misc]


def _pair(predicted: Sequence[float], measured: Sequence[float]) -> str:
    return f"{numbers.duration(series.median(predicted))} / {numbers.duration(series.median(measured))}"
