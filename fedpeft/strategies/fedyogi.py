"""FedYogi (Reddi et al. 2021, arXiv:2003.00295, algorithm 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpeft.core.types import Tensors
from fedpeft.strategies.base import FedPeft
from fedpeft.strategies.server_optimizer import Moments, ServerOptimizer, adaptive_steps, check_settings


class FedYogi(ServerOptimizer):
    """Step as Yogi does, with what the round proposes in the gradient's place.

        D = rule(x, updates) - x
        m = beta1 m + (1 - beta1) D
        v = v - (1 - beta2) D^2 sign(v - D^2)
        x = x + server_lr m / (sqrt(v) + tau)                                      (m_0 = 0, v_0 = initial_v)

    v moves by (1 - beta2) D^2 at most, so that after some rounds of small D the step grows slower than FedAdam's.

    Moments are kept in float64 for each tensor; a tensor that nobody trained in a round keeps its value and its
    moments. LoRA factors are stepped one by one, so that over FedAvg or RoLoRA the product B A takes another step than
    a dense matrix would; over FFA-LoRA, whose product is linear in B, it is the paper's.

    Args:
        rule: gives D; linear in the updates, with a basis that stays. FedAvg unless given. It sends what is sent and
            says what this strategy needs and bears.
        server_lr: size of a step where m and sqrt(v) are equal; about what one weight may change in a round.
        beta1: share of m that is carried over, in [0, 1).
        beta2: 1 - beta2 of D^2 is what v moves by, in [0, 1).
        tau: how small D may be before steps shrink with it, in units of D.
        initial_v: v before round 1; None for tau^2.
        settings: of every strategy, see ``FedPeft``.

    Raises:
        ConfigError: a setting is out of range, or the rule cannot be stepped over.

    Example:
        >>> FedYogi(cohort_size=4).rule.__class__.__name__
        'FedAvg'
    """

    def __init__(
        self,
        *,
        rule: FedPeft | None = None,
        server_lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        initial_v: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(rule=rule, **settings)
        check_settings(server_lr=server_lr, tau=tau, initial_v=initial_v, beta1=beta1, beta2=beta2)
        self.server_lr, self.beta1, self.beta2, self.tau = server_lr, beta1, beta2, tau
        self.initial_v = tau**2 if initial_v is None else initial_v

    def advance(self, steps: Tensors) -> tuple[Moments, Tensors]:
        """Return m and v, and the step that they make."""
        m = {k: self.beta1 * self.moments.first.get(k, 0.0) + (1 - self.beta1) * d for k, d in steps.items()}
        before = {k: self.moments.second.get(k, np.full(d.shape, self.initial_v)) for k, d in steps.items()}
        v = {k: before[k] - (1 - self.beta2) * d**2 * np.sign(before[k] - d**2) for k, d in steps.items()}
        moments = self.moments.with_step(m, v)
        return moments, adaptive_steps(moments, steps, server_lr=self.server_lr, tau=self.tau)
