"""FLoRIST (Ramesh and Dass 2025, arXiv:2506.09199): stacked factors, cut where their singular values are small."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import Factors, factors_of, keep_energy, split, stack, svd
from fedpeft.core.pairs import Pair, lora_pairs
from fedpeft.core.products import (
    NOISE,
    changes_of,
    fill_rows,
    for_client,
    mean_of_others,
    merge_tensors,
    merged_change,
    shares,
    to_float32,
)
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import replaced
from fedpeft.core.traits import FACTORS, RANKS
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.merging import Merging


class FLoRIST(Merging):
    """Stack the clients' factors and keep the strongest singular directions, as many as hold a share of the energy.

        [s_1 B_1 ... s_K B_K] [p_1 A_1; ...; p_K A_K] = U S V^T
        p = min { q : sum_{i <= q} S_i^2 >= energy sum_i S_i^2 },   B = U[:, :p] S[:p],   A = V[:, :p]^T

    p is chosen for each module. With energy 1 nothing is lost: the product is FLoRA's. The head is averaged by
    examples. Up go r_k (m + n) floats for a weight (m, n), down max(p, r_k) (m + n).

    Differs: p follows from the values, a client's rank r_k from its device. Every client gets the p directions, and
    goes on from the first r_k of them; the others it adds to its frozen base. Their mean over the clients joins the
    next stack, so that this is exact for any ranks. Where p is below r_k, the missing rows of A are drawn from the seed
    and the round, orthonormal to the others, beside columns of zeros in B. The singular values are those of the QR
    factors' small product, which are the same as by the paper's SVD of each stack.

    Args:
        energy: share of the squared singular values that is kept, in (0, 1].
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: the energy is out of range.

    Example:
        >>> FLoRIST(energy=0.9).energy
        0.9
    """

    linear = False
    requires = frozenset({FACTORS, RANKS})
    mixed_ranks = True
    renews_basis = True

    def __init__(self, *, energy: float = 0.99, **settings: Any) -> None:
        if not 0 < energy <= 1:
            raise ConfigError(f"energy must be in (0, 1], got {energy} (set strategy.energy)")
        super().__init__(**settings)
        self.energy = energy

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the first directions as factors at the client's rank, the others to merge."""
        own = for_client(global_tensors, client, self.view.ranks.scaling)
        if own is global_tensors:
            return {**own, **self._merged}
        beyond = {}
        for pair in lora_pairs(global_tensors):
            kept = self._kept(global_tensors, pair)
            beyond[pair.module] = Factors(b=kept.b[:, client.rank :], a=kept.a[client.rank :])
        return {**own, **merge_tensors(beyond)}

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the strongest directions as factors, remember the others; see the class."""
        pairs, weights = lora_pairs(global_tensors), shares(updates)
        beyond, new = {}, mean_of_others(updates, pairs)
        for pair in pairs:
            kept = self._kept(global_tensors, pair)
            parts = [*changes_of(updates, pair), self._not_trained(kept, pair, updates, weights)]
            u, s, vt = svd(stack(parts, [*weights, 1.0]))
            p = keep_energy(np.where(s > NOISE * s.max(initial=0.0), s, 0.0), self.energy)
            u, s, vt, rank = u[:, :p], s[:p], vt[:p], global_tensors[pair.a].shape[0]
            a, b = split(u, s, vt, rank, self.view.ranks.scaling)
            a = fill_rows(a, p, rng(self.seed, "florist", self.view.server_round, pair.module))
            new[pair.a], new[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
            beyond[pair.module] = Factors(b=u[:, rank:] * s[rank:], a=vt[rank:])
        self._merged = merge_tensors(beyond)
        return replaced(global_tensors, new)

    def _kept(self, global_tensors: Tensors, pair: Pair) -> Factors:
        """Return every direction that was kept, strongest first, without those at the end that are zero."""
        own = factors_of(global_tensors, pair, self.view.ranks.scaling)
        parts = [own, *merged_change(self._merged, pair)]
        all_of_them = stack(parts, [1.0] * len(parts))
        count = int(np.flatnonzero(all_of_them.b.any(axis=0)).max(initial=-1)) + 1
        return Factors(b=all_of_them.b[:, :count], a=all_of_them.a[:count])

    @staticmethod
    def _not_trained(kept: Factors, pair: Pair, updates: list[ClientUpdate], weights: list[float]) -> Factors:
        """Return what the clients' merged directions are in the mean: direction i counts p_k where r_k <= i."""
        counts = np.zeros(kept.rank)
        for one, weight in zip(updates, weights, strict=True):
            counts[one.tensors[pair.a].shape[0] :] += weight
        left = np.flatnonzero(counts)
        return Factors(b=kept.b[:, left] * counts[left], a=kept.a[left])
