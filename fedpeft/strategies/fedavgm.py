"""FedAvgM (Hsu et al. 2019, arXiv:1909.06335): momentum on the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.core.wire import ConfigValue
from fedpeft.strategies.base import FedPeft, StateValue
from fedpeft.strategies.fedavg import FedAvg
from fedpeft.strategies.server_optimizer import (
    RULE,
    Moments,
    check_settings,
    inside,
    proposed_step,
    stepped,
    take_flags,
    without,
)


class FedAvgM(FedPeft):
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
        super().__init__(**settings)
        check_settings(server_lr=server_lr, beta=beta)
        self.rule = FedAvg() if rule is None else rule
        take_flags(self, self.rule)
        self.server_lr, self.beta = server_lr, beta
        self.moments = Moments()

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send what the rule sends."""
        return inside(self, self.rule).client_tensors(global_tensors, client)

    def client_config(self, client: ClientInfo) -> Mapping[str, ConfigValue]:
        """Tell clients what the rule tells them."""
        return inside(self, self.rule).client_config(client)

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Step on what the rule proposes."""
        steps = proposed_step(inside(self, self.rule), global_tensors, updates)
        v = {key: self.beta * self.moments.first.get(key, 0.0) + d for key, d in steps.items()}
        new = stepped(global_tensors, {key: self.server_lr * value for key, value in v.items()})
        self.moments = self.moments.with_step(v, {})
        return new

    def model_tensors(self, global_tensors: Tensors) -> Tensors:
        """Return what the rule returns."""
        return inside(self, self.rule).model_tensors(global_tensors)

    def check_ranks(self, ranks: RankPlan) -> None:
        """Refuse ranks that the rule cannot bear."""
        super().check_ranks(ranks)
        inside(self, self.rule).check_ranks(ranks)

    def state(self) -> dict[str, StateValue]:
        """Return the momentum and the rule's own state."""
        return {**self.moments.state(), **{RULE + key: value for key, value in self.rule.state().items()}}

    def load_state(self, state: Mapping[str, StateValue]) -> None:
        """Take both back."""
        self.moments = Moments.read(state)
        self.rule.load_state(without(state, RULE))

    def notes(self) -> Mapping[str, object]:
        """Return what the rule has to say."""
        return inside(self, self.rule).notes()
