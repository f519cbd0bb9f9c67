"""What a strategy's hooks may look at."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo


@dataclass(frozen=True, kw_only=True)
class View:
    """What hooks may look at besides their arguments and the strategy's own state.

    Attributes:
        server_round: the round, from 1.
        ranks: rank and scaling of the global model and of each device.
        asked: the clients that were sent this round's messages.
    """

    server_round: int = 1
    ranks: RankPlan = field(default_factory=RankPlan)
    asked: tuple[ClientInfo, ...] = ()
