"""TIES (Yadav et al. 2023, arXiv:2306.01708): trim the clients' changes, elect signs, average what agrees."""

from __future__ import annotations

import math
from typing import Any

from fedpeft.core.dense import plain_pairs, product, svd_of
from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import factors_of
from fedpeft.core.merging import ties
from fedpeft.core.products import changes_of, for_client, mean_of_others, to_float32
from fedpeft.core.singular import split
from fedpeft.core.tensors import replaced
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft


class TIES(FedPeft):
    """Merge the clients' changes entry by entry: small ones are dropped, and those that point the minority's way.

        x_k = trim(s_k B_k A_k - s B A, density);  e = sign(sum_k n_k x_k)
        y   = scale * sum_k n_k x_k / sum_k n_k, over the clients k with sign(x_k) = e, entry by entry
        s B A <- the nearest of rank r to  s B A + y

    Which entries are large shows in the full (m, n) matrix alone. Matrix by matrix, the server holds K m n numbers and
    decomposes one of them, which takes O(m n min(m, n)): minutes for a large language model's. What the truncation to
    rank r drops is ``sqrt(sum_{i > r} S_i^2)`` of the singular values S; trimmed changes are far from low-rank. Clients
    of smaller ranks are sent the first directions. The head is averaged by examples.

    Methods without factors are merged tensor by tensor, the head too: y of what each client changed, added to the
    global tensor. So are factors beside which something else trains (DoRA's magnitudes).

    Differs: the share ``density`` is kept of each matrix, not of all parameters together. Weights are by examples, and
    the mean is over the clients that agree, see ``core.merging.ties``.

    Args:
        density: share of the entries that each client keeps, in (0, 1].
        scale: factor on the merged change, positive.
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: density or scale is out of range.

    Example:
        >>> TIES(density=0.5).mixed_ranks
        True
    """

    linear = False
    mixed_ranks = True
    renews_basis = True

    def __init__(self, *, density: float = 0.2, scale: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        problems = []
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
            problems.append(f"strategy.density must be a number in (0, 1], got {density!r}")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            problems.append(f"strategy.scale must be a positive number, got {scale!r}")
        if problems:
            raise ConfigError(problems)
        self.density, self.scale = density, scale

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the first directions, as many as the client's rank."""
        return for_client(global_tensors, client, self.view.ranks.scaling)

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the merged model at the global rank; see the class."""
        weights = [float(one.num_examples) for one in updates]
        pairs = plain_pairs(global_tensors)
        new = mean_of_others(updates, pairs) if pairs else {}
        for pair in pairs:
            scaling = self.view.ranks.scaling
            start = product(factors_of(global_tensors, pair, scaling))
            changes = [product(one) - start for one in changes_of(updates, pair)]
            u, s, vt = svd_of(start + ties(changes, weights, self.density, self.scale))
            a, b = split(u, s, vt, global_tensors[pair.a].shape[0], scaling)
            new[pair.a], new[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
        for key in [] if pairs else sorted(updates[0].tensors):
            changes = [one.tensors[key].astype("float64") - one.sent[key] for one in updates]
            moved = global_tensors[key] + ties(changes, weights, self.density, self.scale)
            new[key] = to_float32(moved, key)
        return replaced(global_tensors, new)
