"""HetLoRA (Cho et al. 2024, arXiv:2401.06432): factors of unequal ranks padded with zeros, ranks that clients prune."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import factors_of, norm
from fedpeft.core.orders import Orders
from fedpeft.core.pairs import Pair, lora_pairs
from fedpeft.core.products import for_client, mean_of_others, shares, to_float32
from fedpeft.core.tensors import replaced
from fedpeft.core.traits import FACTORS, RANKS
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.core.wire import ConfigValue
from fedpeft.strategies.base import FedPeft, StateValue

CLIENTS, KEPT = "pruned.clients", "pruned.ranks"
WEIGHTINGS = ("norm", "examples")


class HetLoRA(FedPeft):
    """Pad every client's factors with zeros to the global rank, average them by their size, cut them on the way down.

        A[j] = sum_k w_k A_k[j],   B[:, j] = sum_k w_k (s_k / s) B_k[:, j],   over the clients with r_k > j
        w_k = |s_k B_k A_k|_F / sum_i |s_i B_i A_i|_F, for each module
        client of rank r_k:  A[:r_k],   B[:, :r_k] s / s_k

    Rank self-pruning: a client's loss has ``tail_weight * sum |B[:, g:]| |A[g:]|`` added, with
    ``g = max(min_rank, floor(gamma r_k))``. Where that sum is smaller after training than it was when the client
    received its factors, its rank becomes g. Up and down go r_k (m + n) floats for a weight (m, n).

    Differs: the server compares the two sums, of which it knows both ends, and remembers the ranks; the paper's clients
    prune themselves and send back less in the same round. Scalings differ with alpha / rank, so B carries s_k / s and
    the norm is of what the client's model adds. Directions that nobody in the cohort has stay as they were: zeros from
    all sides would end them for good. Where every norm is zero, examples are the weights. The head is averaged by
    examples.

    Args:
        weighting: ``norm``, or ``examples`` for w_k = p_k.
        rowwise: divide direction j by the weights of those that have it, so that padding does not shrink it.
        gamma: share of the rank that is not in the tail, in (0, 1]; 1 never prunes.
        tail_weight: weight of the tail in a client's loss, 0 or more.
        min_rank: rank below which nobody is pruned, 1 or more.
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: an argument is out of range; all problems together.

    Example:
        >>> HetLoRA(gamma=0.5).mixed_ranks
        True
    """

    linear = False
    requires = frozenset({FACTORS, RANKS})
    mixed_ranks = True

    def __init__(
        self,
        *,
        weighting: str = "norm",
        rowwise: bool = False,
        gamma: float = 0.9,
        tail_weight: float = 0.001,
        min_rank: int = 1,
        **settings: Any,
    ) -> None:
        problems = []
        if weighting not in WEIGHTINGS:
            problems.append(f"strategy.weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
        if not isinstance(rowwise, bool):
            problems.append(f"strategy.rowwise must be true or false, got {rowwise!r}")
        if not 0 < gamma <= 1:
            problems.append(f"strategy.gamma must be in (0, 1], got {gamma}")
        if not 0 <= tail_weight < math.inf:
            problems.append(f"strategy.tail_weight must be a finite number >= 0, got {tail_weight}")
        if type(min_rank) is not int or min_rank < 1:
            problems.append(f"strategy.min_rank must be a whole number >= 1, got {min_rank!r}")
        if problems:
            raise ConfigError(problems)
        super().__init__(**settings)
        self.weighting, self.rowwise = weighting, rowwise
        self.gamma, self.tail_weight, self.min_rank = gamma, tail_weight, min_rank
        self._pruned: dict[int, int] = {}

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the first directions, as many as the client has left."""
        return for_client(global_tensors, self.as_pruned(client), self.view.ranks.scaling)

    def client_config(self, client: ClientInfo) -> Mapping[str, ConfigValue]:
        """Tell a client its rank where it was pruned, and what to shrink."""
        now = self.as_pruned(client)
        orders = Orders() if now is client else Orders(rank=now.rank or 0, scaling=now.scaling)
        tail = self._tail(now.rank) if now.rank else 0
        if self.tail_weight and tail < (now.rank or 0):
            orders = replace(orders, tail_rank=tail, tail_weight=self.tail_weight)
        return orders.entries()

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the weighted sum of the padded factors, and prune ranks; see the class."""
        pairs = lora_pairs(global_tensors)
        new = mean_of_others(updates, pairs)
        for pair in pairs:
            a, b = self._padded_sum(global_tensors, updates, pair)
            new[pair.a], new[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
        self._pruned = {**self._pruned, **self._newly_pruned(updates, pairs)}
        return replaced(global_tensors, new)

    def state(self) -> dict[str, StateValue]:
        """Return who was pruned, and to which rank."""
        clients = sorted(self._pruned)
        return {
            CLIENTS: np.array(clients, dtype=np.int64),
            KEPT: np.array([self._pruned[client] for client in clients], dtype=np.int64),
        }

    def load_state(self, state: Mapping[str, StateValue]) -> None:
        """Take back what ``state`` returned."""
        clients, ranks = np.asarray(state[CLIENTS]).tolist(), np.asarray(state[KEPT]).tolist()
        self._pruned = dict(zip(clients, ranks, strict=True))

    def as_pruned(self, client: ClientInfo) -> ClientInfo:
        """Return the client with the rank that it has left, and the scaling of that rank."""
        left = self._pruned.get(client.client_id)
        if left is None or client.rank is None or client.rank <= left:
            return client
        return replace(client, rank=left, scaling=self.view.ranks.scaling_for(left))

    def _padded_sum(
        self, global_tensors: Tensors, updates: Sequence[ClientUpdate], pair: Pair
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return A (r, n) and B (m, r) in float64."""
        weights = self._weights(updates, pair)
        held = np.zeros(global_tensors[pair.a].shape[0])
        a, b = (np.zeros(global_tensors[key].shape) for key in (pair.a, pair.b))
        for one, weight in zip(updates, weights, strict=True):
            client = self.as_pruned(one.client)
            own = factors_of(one.tensors, pair, client.scaling / self.view.ranks.scaling)
            held[: own.rank] += weight
            a[: own.rank] += weight * own.a
            b[:, : own.rank] += weight * own.b
        has = held > 0
        divisor = np.where(has, held if self.rowwise else 1.0, 1.0)
        a = np.where(has[:, None], a / divisor[:, None], global_tensors[pair.a])
        b = np.where(has, b / divisor, global_tensors[pair.b])
        return a, b

    def _weights(self, updates: Sequence[ClientUpdate], pair: Pair) -> list[float]:
        sizes = [norm(factors_of(one.tensors, pair, self.as_pruned(one.client).scaling)) for one in updates]
        if self.weighting == "examples" or sum(sizes) == 0:
            return shares(updates)
        return [size / sum(sizes) for size in sizes]

    def _tail(self, rank: int) -> int:
        """Return where the tail of factors of this rank begins; the rank or more where there is none."""
        # 0.58 * 50 is 28.999999999999996 in floating point.
        return max(self.min_rank, math.floor(self.gamma * rank + 1e-9))

    def _newly_pruned(self, updates: Sequence[ClientUpdate], pairs: Sequence[Pair]) -> dict[int, int]:
        pruned = {}
        for one in updates:
            rank = self.as_pruned(one.client).rank or 0
            tail = self._tail(rank)
            if tail < rank and tail_score(one.tensors, pairs, tail) < tail_score(one.sent, pairs, tail):
                pruned[one.client.client_id] = tail
        return pruned


def tail_score(tensors: Tensors, pairs: Sequence[Pair], tail: int) -> float:
    """Return ``sum |B[:, tail:]|_F |A[tail:]|_F`` over the modules.

    Args:
        tensors: factors of one rank.
        pairs: the modules.
        tail: index of the first direction that counts.
    """
    sides = ((tensors[pair.b][:, tail:], tensors[pair.a][tail:]) for pair in pairs)
    return float(sum(np.linalg.norm(np.float64(b)) * np.linalg.norm(np.float64(a)) for b, a in sides))
