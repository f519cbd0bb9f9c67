"""What Flower's grids that wrap another one have in common."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class PassingGrid(Grid):
    """Passes everything on to another grid but the messages, which subclasses carry.

    Args:
        inner: the other grid.
    """

    def __init__(self, inner: Grid) -> None:
        self.inner = inner

    @property
    def run(self) -> object:  # type: ignore[override]
        """The inner grid's run."""
        return self.inner.run

    def set_run(self, run: object) -> None:
        """Pass on to the inner grid."""
        self.inner.set_run(run)  # type: ignore[arg-type]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on to the inner grid."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on to the inner grid."""
        return self.inner.get_node_ids()
