"""FedEx-LoRA (Singhal et al. 2024, arXiv:2410.09432): averaged factors, their error added to the frozen base."""

from __future__ import annotations

from fedpeft.core.factors import factors_of
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.products import changes_of, merge_tensors, merged_change, shares, stacked, total
from fedpeft.core.tensors import replaced, weighted_mean
from fedpeft.core.traits import FACTORS
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.merging import Merging


class FedExLoRA(Merging):
    """Average A and B, and add to every base what the product of the means lacks.

        A = sum_k p_k A_k,   B = sum_k p_k B_k
        W <- W + sum_k p_k s B_k A_k - s B A

    The residual has a rank of at most (K + 1) r for K clients; it is held as factors and never as a matrix. All clients
    have one rank. The head is averaged by examples.

    Differs: the paper's clients add each round's residual to their base and keep it. Here the sum of all residuals
    travels as factors to merge, compressed without loss, so that a client may join in any round, keeps nothing, and the
    base stays what it is. Down go (q + r) (m + n) floats for a weight (m, n), q the sum's rank, at most min(m, n); up
    r (m + n).

    Args:
        **settings: those of ``FedPeft``.

    Example:
        >>> FedExLoRA(cohort_size=4).merges
        True
    """

    linear = False
    requires = frozenset({FACTORS})

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the mean factors and the residuals so far."""
        return {**global_tensors, **self._merged}

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the means, remember what they lack; see the class."""
        mean = weighted_mean([one.tensors for one in updates], [one.num_examples for one in updates])
        residuals = {}
        for pair in lora_pairs(global_tensors):
            # Against the means as they travel, in float32: their own rounding is part of what they lack.
            lacking = [*changes_of(updates, pair), factors_of(mean, pair, self.view.ranks.scaling)]
            residual = total(lacking, [*shares(updates), -1.0])
            parts = [*merged_change(self._merged, pair), residual]
            # The stack of all rounds is compressed only when it has too many columns: that costs a large decomposition.
            residuals[pair.module] = stacked(parts, [1.0] * len(parts))
        self._merged = merge_tensors(residuals)
        return replaced(global_tensors, mean)
