"""LoRA-FAIR (Bian et al. 2024, arXiv:2411.14961): averaged factors, B corrected towards the mean product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.pairs import Pair, lora_pairs
from fedpeft.core.products import shares, to_float32
from fedpeft.core.tensors import replaced, weighted_mean
from fedpeft.core.traits import FACTORS
from fedpeft.core.types import ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft


class LoRAFAIR(FedPeft):
    """Average A and B, then move B so that the product comes nearer to the mean of products, A staying the mean.

        A' = sum_k p_k A_k,   B' = sum_k p_k B_k + D
        D = argmin |R - D A'|^2 + lam |D|^2 = R A'^T (A' A'^T + lam I)^-1,   R = sum_k p_k B_k A_k - B_mean A'

    D (m, r) can undo only that part of R (m, n) whose rows lie in those of A', so the product comes nearer and is not
    exact. R is the clients' covariance ``sum_k p_k (B_k - B_mean) (A_k - A')``, and ``R A'^T`` costs O(K r^2 (m + n))
    in that form; R itself is never formed. All clients have one rank. The head is averaged by examples. Up and down go
    r (m + n) floats for a weight (m, n).

    Differs: the paper searches D by gradient steps on a measure of similarity; here it is the squared distance, whose
    minimum is in closed form. ``lam`` is therefore not the paper's: it adds to the squared size of A's rows.

    Args:
        lam: how much D is held back, positive.
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: ``lam`` is out of range.

    Example:
        >>> LoRAFAIR(lam=0.1).lam
        0.1
    """

    linear = False
    requires = frozenset({FACTORS})

    def __init__(self, *, lam: float = 0.01, **settings: Any) -> None:
        if not 0 < lam < math.inf:
            raise ConfigError(f"lam must be a positive number, got {lam} (set strategy.lam)")
        super().__init__(**settings)
        self.lam = lam

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the means with B corrected; see the class."""
        mean = weighted_mean([one.tensors for one in updates], [one.num_examples for one in updates])
        for pair in lora_pairs(global_tensors):
            mean[pair.b] = to_float32(self._corrected(updates, pair), pair.module)
        return replaced(global_tensors, mean)

    def _corrected(self, updates: Sequence[ClientUpdate], pair: Pair) -> np.ndarray:
        """Return B' (m, r) in float64."""
        factors = [{key: one.tensors[key].astype(np.float64) for key in (pair.a, pair.b)} for one in updates]
        mean = weighted_mean(factors, [one.num_examples for one in updates])
        a, b = mean[pair.a], mean[pair.b]
        towards = np.zeros_like(b)
        for one, weight in zip(factors, shares(updates), strict=True):
            towards += weight * (one[pair.b] - b) @ ((one[pair.a] - a) @ a.T)
        gram = a @ a.T + self.lam * np.eye(len(a))
        corrected: np.ndarray = b + np.linalg.solve(gram, towards.T).T
        return corrected
