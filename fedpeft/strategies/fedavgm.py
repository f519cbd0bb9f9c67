"""FedAvgM (Hsu et al. 2019, arXiv:1909.06335): momentum on the server."""

from __future__ import annotations

from typing import Any

from fedpeft.core.types import Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.server_optimizer import Moments, ServerOptimizer, check_settings


class FedAvgM(ServerOptimizer):
    """Carry the federation's direction over from round to round.

        D = rule(x, updates) - x,   v = beta v + D,   x = x + server_lr v          (v_0 = 0)

    In a steady direction steps grow to server_lr / (1 - beta) times D. The first round over FedAvg with server_lr = 1
    is FedAvg. A mean over rounds, v = beta v + (1 - beta) D, is the same with server_lr multiplied by (1 - beta), but
    for its start. Momentum of a tensor that nobody trained in a round waits.

    Args:
        rule: gives D; linear in the updates, with a basis that stays. FedAvg unless given. It sends what is sent and
            says what this strategy needs and bears.
        server_lr: factor on v.
        beta: share of v that is carried over, in [0, 1).
        settings: of every strategy, see ``FedPeft``.

    Raises:
        ConfigError: a setting is out of range, or the rule cannot be stepped over.

    Example:
        >>> FedAvgM(cohort_size=4).rule.__class__.__name__
        'FedAvg'
    """

    def __init__(
        self,
        *,
        rule: FedPeft | None = None,
        server_lr: float = 1.0,
        beta: float = 0.9,
        **settings: Any,
    ) -> None:
        super().__init__(rule=rule, **settings)
        check_settings(server_lr=server_lr, beta=beta)
        self.server_lr, self.beta = server_lr, beta

    def advance(self, steps: Tensors) -> tuple[Moments, Tensors]:
        """Return v, and server_lr v."""
        v = {key: self.beta * self.moments.first.get(key, 0.0) + d for key, d in steps.items()}
        return self.moments.with_step(v, {}), {key: self.server_lr * value for key, value in v.items()}
