"""RoLoRA (Chen et al. 2024, arXiv:2409.02346; 2025, arXiv:2502.01755): one factor a round."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.core.orders import Orders
from fedpeft.core.traits import FACTORS
from fedpeft.core.types import ClientInfo
from fedpeft.core.wire import ConfigValue
from fedpeft.strategies.base import FedPeft


class RoLoRA(FedPeft):
    """Train and average B in odd rounds and A in even ones, with the other factor frozen and the same on all clients.

        odd:   B = sum_k p_k B_k,  A as it was        even:  A = sum_k p_k A_k,  B as it was

    Either way s B A = sum_k p_k s B_k A_k: the mean of products is exact, and unlike FFA-LoRA both factors learn. The
    first round trains B, because while B is zero A has no gradient.

    Differs: both factors go down in every round, because a client may not have been in the last one. Up goes the one
    that trained.

    Example:
        >>> RoLoRA(cohort_size=4).linear
        True
    """

    linear = True
    requires = frozenset({FACTORS})

    def client_config(self, client: ClientInfo) -> Mapping[str, ConfigValue]:
        """Freeze A in odd rounds, B in even ones."""
        frozen = "lora_A" if self.view.server_round % 2 else "lora_B"
        return Orders(freeze=(frozen,)).entries()
