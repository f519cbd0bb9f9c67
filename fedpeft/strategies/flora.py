"""FLoRA (Wang et al. 2024, arXiv:2409.05976): stack the clients' factors, add the product to the base, start anew."""

from __future__ import annotations

import numpy as np

from fedpeft.core.pairs import lora_pairs
from fedpeft.core.products import (
    changes_of,
    for_client,
    mean_of_others,
    merge_tensors,
    merged_change,
    shares,
    stacked,
)
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import replaced
from fedpeft.core.traits import FACTORS, RANKS
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.merging import Merging


class FLoRA(Merging):
    """Stack the clients' factors, whatever their ranks: the sum of their products without any error.

        B = [s_1 B_1 ... s_K B_K],   A = [p_1 A_1; ...; p_K A_K],   B A = sum_k p_k s_k B_k A_k
        W <- W + B A;   each client then trains new factors of its own rank

    B is (m, R) and A (R, n) with ``R = sum_k r_k`` for a weight (m, n). New factors are as peft draws them: B zero, A
    uniform in +-1/sqrt(n), from the seed, the round and the module, so that clients share it and a resumed run repeats
    it. The head is averaged by examples.

    Differs: the paper sends the stack of one round, to clients that took part in every round before. Here all that was
    ever aggregated travels as factors to merge, so that a client may join in any round and keeps nothing. Those are
    R (m + n) floats a module more for each round, until a stack would have more than min(m, n) columns: then it is
    compressed, without loss, to that many. Down go therefore at most (min(m, n) + r_k) (m + n) floats a module, up
    r_k (m + n).

    Args:
        **settings: those of ``FedPeft``.

    Example:
        >>> sorted(FLoRA(cohort_size=4).requires), FLoRA.mixed_ranks, FLoRA.merges
        (['factors', 'ranks'], True, True)
    """

    linear = False
    requires = frozenset({FACTORS, RANKS})
    mixed_ranks = True
    renews_basis = True

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the new factors at the client's rank, and all that was aggregated."""
        return {**for_client(global_tensors, client, self.view.ranks.scaling), **self._merged}

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Add the stack to what was aggregated, return new factors; see the class."""
        pairs = lora_pairs(global_tensors)
        changes, new = {}, mean_of_others(updates, pairs)
        for pair in pairs:
            before = merged_change(self._merged, pair)
            parts = [*before, *changes_of(updates, pair)]
            changes[pair.module] = stacked(parts, [*(1.0 for _ in before), *shares(updates)])
            new[pair.a] = self._drawn(pair.module, global_tensors[pair.a])
            new[pair.b] = np.zeros_like(global_tensors[pair.b])
        self._merged = merge_tensors(changes)
        return replaced(global_tensors, new)

    def _drawn(self, module: str, like: np.ndarray) -> np.ndarray:
        """Return A (r, n) for the next round: Kaiming-uniform with a = sqrt(5), whose bound is 1 / sqrt(n)."""
        bound = 1 / np.sqrt(like.shape[1])
        source = rng(self.seed, "flora", self.view.server_round + 1, module)
        return source.uniform(-bound, bound, size=like.shape).astype(like.dtype)
