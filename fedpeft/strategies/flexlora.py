"""FlexLoRA (Bai et al. 2024, arXiv:2402.11505): average the products, give each client the best of its rank."""

from __future__ import annotations

from fedpeft.core.factors import split, stack, svd
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.products import changes_of, fill_rows, for_client, mean_of_others, shares, to_float32
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import replaced
from fedpeft.core.traits import FACTORS, RANKS
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft


class FlexLoRA(FedPeft):
    """Average the clients' products and split the mean by its singular values, for each client at its own rank.

        sum_k p_k s_k B_k A_k = U S V^T
        client of rank r_k:  B = U[:, :r_k] S[:r_k] / s_k,   A = V[:, :r_k]^T

    The global model has the largest rank r; what a client of rank r_k gets are its first r_k directions, which is what
    truncation of the mean itself would give. The error of the global model is ``sqrt(sum_{i > r} S_i^2)``, none where
    the mean has rank r. The head is averaged by examples. Up and down go r_k (m + n) floats for a weight (m, n).

    Differs: the mean is decomposed through the QR of the stacked factors, never as an (m, n) matrix: the same singular
    values. Where the mean has fewer of them than r, the paper's A would have rows of zeros, beside columns of zeros in
    B, and those directions would never train again; here such rows of A are drawn from the seed and the round,
    orthonormal to the others, which leaves the product as it is.

    Example:
        >>> FlexLoRA(cohort_size=4).mixed_ranks
        True
    """

    linear = False
    requires = frozenset({FACTORS, RANKS})
    mixed_ranks = True
    renews_basis = True

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the first directions, as many as the client's rank."""
        return for_client(global_tensors, client, self.view.ranks.scaling)

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the factors of the mean product; see the class."""
        pairs = lora_pairs(global_tensors)
        new = mean_of_others(updates, pairs)
        for pair in pairs:
            u, s, vt = svd(stack(changes_of(updates, pair), shares(updates)))
            rank = global_tensors[pair.a].shape[0]
            a, b = split(u, s, vt, rank, self.view.ranks.scaling)
            a = fill_rows(a, len(s), rng(self.seed, "flexlora", self.view.server_round, pair.module))
            new[pair.a], new[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
        return replaced(global_tensors, new)
