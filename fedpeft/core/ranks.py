"""Which LoRA rank each device trains at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fedpeft.core.types import ClientInfo


def _one(rank: int) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """Ranks by device, decided by the server: what a client claims of itself is not asked.

    Attributes:
        rank: rank of the global model, the largest of all; None for methods without ranks.
        default: rank of devices that are not listed.
        by_device: rank by device profile.
        scaling_for: factor on B A at a rank.
    """

    rank: int | None = None
    default: int | None = None
    by_device: Mapping[str, int] = field(default_factory=dict)
    scaling_for: Callable[[int], float] = _one

    @property
    def scaling(self) -> float:
        """Factor on B A in the global model."""
        return 1.0 if self.rank is None else self.scaling_for(self.rank)

    @property
    def mixed(self) -> bool:
        """Whether ranks may differ."""
        return len({self.default, *self.by_device.values()}) > 1

    def assign(self, client: ClientInfo) -> ClientInfo:
        """Return the client with its rank and scaling."""
        rank = self.by_device.get(client.device, self.default)
        if rank is None:
            return replace(client, rank=None, scaling=1.0)
        return replace(client, rank=rank, scaling=self.scaling_for(rank))
