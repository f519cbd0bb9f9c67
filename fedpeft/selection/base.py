"""The contract of a selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fedpeft.core.types import ClientInfo


class Selection(Protocol):
    """Chooses a round's cohort; the same arguments always give the same cohort."""

    def select(
        self, clients: Sequence[ClientInfo], cohort_size: int, server_round: int, rng: np.random.Generator
    ) -> list[ClientInfo]:
        """Return at most ``cohort_size`` different clients.

        Args:
            clients: every client that is there, by client id.
            cohort_size: how many are wanted.
            server_round: the round, from 1.
            rng: the only source of randomness.
        """
        ...
