"""Local-only training: the baseline without a federation."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.core.orders import EVERYTHING, Orders
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.core.wire import ConfigValue
from fedpeft.strategies.base import FedPeft


class LocalOnly(FedPeft):
    """Every client trains a model of its own and nothing is averaged.

        x_k <- what client k makes of x_k;   the server's model stays as it began

    What a federation has to beat. No tensor travels in either direction; the messages that remain are orders and
    metrics. Judge it by the clients' figures on their own examples (``evaluate.clients_every``).

    Example:
        >>> LocalOnly(cohort_size=4).linear
        True
    """

    linear = True
    mixed_ranks = True

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send nothing."""
        return {}

    def client_config(self, client: ClientInfo) -> Mapping[str, ConfigValue]:
        """Let everything train and stay."""
        return Orders(keep=(EVERYTHING,)).entries()

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the global tensors as they are."""
        return {key: value.copy() for key, value in global_tensors.items()}
