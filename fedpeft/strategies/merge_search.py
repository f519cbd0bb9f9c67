"""Merging with coefficients found by CMA-ES on the server's data (after arXiv:2410.13699)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpeft.core.dense import plain_pairs
from fedpeft.core.errors import ConfigError
from fedpeft.core.factors import factors_of, split, stack, svd
from fedpeft.core.layers import layer_name
from fedpeft.core.products import changes_of, fill_rows, for_client, shares, to_float32
from fedpeft.core.search import check_cma, minimise, population
from fedpeft.core.seeds import rng
from fedpeft.core.tensors import replaced
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft

MOST_COEFFICIENTS = 50
"""CMA-ES learns a full covariance: beyond this, a few hundred evaluations do not tell it enough."""


class MergeSearch(FedPeft):
    """Merge the clients' changes with the coefficients that do best on examples the server has set aside.

        x <- x + sum_k lambda_kg (x_k - x)    for the tensors x of group g; for LoRA, x is the product s B A,
                                              and what comes out is cut to rank r
        lambda = argmin of the model's mean loss on the search examples, by CMA-ES from lambda_kg = p_k

    p_k = n_k / sum_j n_j. Coefficients are free: above 1, negative, and of any sum. In rounds without a search they are
    p_k, which is the mean of the changes. The search begins there and returns the best that it tried, so that it is
    never worse on the search examples; whether it is better on others, the evaluation says, which never sees them.

    The search examples are drawn from the held-out ones (``task.held_out``), are left out of every evaluation and never
    reach a client. Each evaluation of the search is a pass over all of them. Products are summed as factors, see
    ``core.factors``; factors beside which something else trains are merged tensor by tensor, as all other tensors are.
    Clients of smaller ranks are sent the first directions.

    Differs: the search merges what clients of one round return, not finished models of several makers.

    Args:
        search_examples: how many held-out examples are set aside.
        search_every: rounds between searches; the last round always searches, and 0 leaves it at that.
        evaluations: most models that one search tries.
        sigma: standard deviation of CMA-ES' first generation.
        groups: ``all`` gives each client one coefficient, ``layers`` one for each layer and one for what is in none.
        **settings: those of ``FedPeft``.

    Raises:
        ConfigError: an argument is out of range, there are over 50 coefficients, or the ``cma`` package is missing.
    """

    linear = False
    mixed_ranks = True
    renews_basis = True

    def __init__(
        self,
        *,
        search_examples: int = 256,
        search_every: int = 0,
        evaluations: int = 60,
        sigma: float = 0.25,
        groups: str = "all",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        numbers = {
            "search_examples": (search_examples, 1),
            "search_every": (search_every, 0),
            "evaluations": (evaluations, 1),
        }
        problems = [
            f"strategy.{name} must be a whole number >= {least}, got {value!r}"
            for name, (value, least) in numbers.items()
            if type(value) is not int or value < least
        ]
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma < math.inf:
            problems.append(f"strategy.sigma must be a positive number, got {sigma!r}")
        if groups not in ("all", "layers"):
            problems.append(f"strategy.groups must be one of all, layers, got {groups!r}")
        if problems:
            raise ConfigError(problems)
        check_cma()
        self.search_examples, self.search_every = search_examples, search_every
        self.evaluations, self.sigma, self.groups = evaluations, sigma, groups
        self._check_size(1)
        self._said: dict[str, object] = {}

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send the first directions, as many as the client's rank.

        Raises:
            ConfigError: the search would have too many coefficients, or nothing to search on.
        """
        self._check_size(len(self._groups_of(global_tensors)))
        if self._final_round is not None and self.search_loss is None:
            raise ConfigError(
                "strategy MergeSearch needs search_loss, a function from tensors to a loss on the server's own "
                "examples (fedpeft's server sets it; set it yourself before start)"
            )
        return for_client(global_tensors, client, self.view.ranks.scaling)

    def aggregate(self, global_tensors: Tensors, updates: list[ClientUpdate]) -> Tensors:
        """Return the merged model, searched for where this round searches; see the class."""
        names = self._groups_of(global_tensors)
        start = np.tile(shares(updates), (len(names), 1))
        self._said = {}
        if not self._searches():
            return self._merged(global_tensors, updates, dict(zip(names, start, strict=True)))

        def model(point: np.ndarray) -> Tensors:
            return self._merged(global_tensors, updates, dict(zip(names, point.reshape(start.shape), strict=True)))

        def loss(point: np.ndarray) -> float:
            assert self.search_loss is not None, "client_tensors saw to it"
            return self.search_loss(self.model_tensors(model(point)))

        found = minimise(
            loss,
            start.ravel().tolist(),
            sigma=self.sigma,
            evaluations=self.evaluations,
            rng=rng(self.seed, "merge-search", self.view.server_round),
        )
        self._said = {
            "search_loss": found.value,
            "search_loss_of_the_mean": found.start_value,
            "search_evaluations": found.evaluations,
            "clients": [one.client.client_id for one in updates],
            "coefficients": dict(zip(names, found.point.reshape(start.shape).tolist(), strict=True)),
        }
        return model(found.point)

    def notes(self) -> Mapping[str, object]:
        """Return the loss on the search examples before and after, and the coefficients by group and client."""
        return self._said

    def _searches(self) -> bool:
        here = self.view.server_round
        due = self.search_every > 0 and here % self.search_every == 0
        return self.search_loss is not None and (due or here == self._final_round)

    def _groups_of(self, tensors: Tensors) -> list[str]:
        return sorted({self._group(key) for key in tensors})

    def _group(self, key: str) -> str:
        return (layer_name(key) or "others") if self.groups == "layers" else "all"

    def _merged(
        self, global_tensors: Tensors, updates: Sequence[ClientUpdate], coefficients: Mapping[str, np.ndarray]
    ) -> Tensors:
        """Return the global tensors with the clients' changes added."""
        pairs, scaling = plain_pairs(global_tensors), self.view.ranks.scaling
        new = {}
        for pair in pairs:
            weights = coefficients[self._group(pair.a)].tolist()
            ours = [factors_of(global_tensors, pair, scaling), *changes_of(updates, pair)]
            u, s, vt = svd(stack(ours, [1 - sum(weights), *weights]))
            a, b = split(u, s, vt, global_tensors[pair.a].shape[0], scaling)
            a = fill_rows(a, len(s), rng(self.seed, "merge-search", self.view.server_round, pair.module))
            new[pair.a], new[pair.b] = to_float32(a, pair.module), to_float32(b, pair.module)
        for key in sorted(updates[0].tensors.keys() - {key for pair in pairs for key in (pair.a, pair.b)}):
            moved = global_tensors[key].astype(np.float64)
            for weight, one in zip(coefficients[self._group(key)], updates, strict=True):
                moved = moved + weight * (one.tensors[key].astype(np.float64) - one.sent[key])
            new[key] = to_float32(moved, key)
        return replaced(global_tensors, new)

    def _check_size(self, num_groups: int) -> None:
        dim = self.cohort_size * num_groups
        if dim > MOST_COEFFICIENTS:
            raise ConfigError(
                f"strategy MergeSearch searches at most {MOST_COEFFICIENTS} coefficients, got {dim}: cohort_size "
                f"{self.cohort_size} x {num_groups} groups (lower cohort_size, or set strategy.groups=all)"
            )
        if self.evaluations < 1 + population(dim):
            raise ConfigError(
                f"strategy.evaluations must be at least {1 + population(dim)} for {dim} coefficients, got "
                f"{self.evaluations}"
            )
