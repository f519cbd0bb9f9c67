"""Task arithmetic (Ilharco et al. 2023, arXiv:2212.04089): the mean of the clients' changes, scaled."""

from __future__ import annotations

import math
from typing import Any

from fedpeft.core.dense import plain_pairs
from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import factors_of, split, stack, svd
from fedpeft.core.merging import task_arithmetic
from fedpeft.core.products import changes_of, fill_rows, for_client, mean_of_others, shares, to_float32
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import replaced
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft


class TaskArithmetic(FedPeft):
    """Add the clients' mean change to the global model, lambda times.

        s B A <- the nearest of rank r to  s B A + scale * (sum_k p_k s_k B_k A_k - s B A),   p_k = n_k / sum_j n_j

    At ``scale=1`` this is FlexLoRA; above 1 it goes further the way that the clients went. The sum is one of low rank
    and is never formed as a matrix. What the truncation to rank r drops is ``sqrt(sum_{i > r} S_i^2)`` of its singular
    values S. Clients of smaller ranks are sent the first directions. The head is averaged by examples.

    Methods without factors are merged tensor by tensor, the head too: ``x + scale * sum_k p_k (x_k - x)``. So are
    factors beside which something else trains (DoRA's magnitudes).

    Differs: the paper's lambda multiplies the plain sum of K changes; here it is ``scale / K`` for K equal clients.

    Args:
        scale: factor on the mean change, positive.
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: the scale is out of range.

    Example:
        >>> TaskArithmetic(scale=1.5).scale
        1.5
    """

    linear = False
    mixed_ranks = True
    renews_basis = True

    def __init__(self, *, scale: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ConfigError(f"strategy.scale must be a positive number, got {scale!r}")
        self.scale = scale

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the first directions, as many as the client's rank."""
        return for_client(global_tensors, client, self.view.ranks.scaling)

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the merged model at the global rank; see the class."""
        pairs = plain_pairs(global_tensors)
        new = mean_of_others(updates, pairs) if pairs else {}
        weights = [self.scale * share for share in shares(updates)]
        for pair in pairs:
            scaling = self.view.ranks.scaling
            start, ours = factors_of(global_tensors, pair, scaling), changes_of(updates, pair)
            u, s, vt = svd(stack([start, *ours], [1 - self.scale, *weights]))
            a, b = split(u, s, vt, global_tensors[pair.a].shape[0], scaling)
            a = fill_rows(a, len(s), rng(self.seed, "task-arithmetic", self.view.server_round, pair.module))
            new[pair.a], new[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
        for key in [] if pairs else sorted(updates[0].tensors):
            changes = [one.tensors[key].astype("float64") - one.sent[key] for one in updates]
            moved = global_tensors[key] + task_arithmetic(changes, [one.num_examples for one in updates], self.scale)
            new[key] = to_float32(moved, key)
        return replaced(global_tensors, new)
