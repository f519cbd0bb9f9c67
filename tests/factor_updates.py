"""Clients' factors of one module written out by hand, and the round that a strategy meets them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedpeft.core.orders import MERGE
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.base import FedPeft

A, B, HEAD = "x.lora_A.weight", "x.lora_B.weight", "head.weight"
Rows = list[list[float]]


def tensors(a: Rows | np.ndarray, b: Rows | np.ndarray, head: float = 0.0) -> Tensors:
    return {HEAD: np.float32([head]), A: np.float32(a), B: np.float32(b)}


def update(
    client_id: int, num_examples: int, scaling: float, returned: Tensors, sent: Tensors | None = None
) -> ClientUpdate:
    client = ClientInfo(
        client_id=client_id,
        node_id=client_id,
        num_examples=num_examples,
        rank=returned[A].shape[0],
        scaling=scaling,
    )
    return ClientUpdate(client=client, tensors=returned, num_examples=num_examples, sent=sent or returned)


def enter(strategy: FedPeft, scalings: Mapping[int, float], server_round: int = 1) -> None:
    """Show a strategy its round; the largest rank of those that have a scaling is the global one."""
    plan = RankPlan(rank=max(scalings), default=max(scalings), scaling_for=scalings.__getitem__)
    strategy.view = replace(strategy.view, ranks=plan, server_round=server_round)


def random_updates(ranks: Mapping[int, float], m: int, n: int, seed: int = 0) -> list[ClientUpdate]:
    """One client of each rank, 1 + 2 i examples, random factors and head."""
    rng = np.random.default_rng(seed)
    return [
        update(i, 1 + 2 * i, s, tensors(rng.normal(size=(r, n)), rng.normal(size=(m, r)), rng.normal()))
        for i, (r, s) in enumerate(ranks.items())
    ]


def mean_product(updates: list[ClientUpdate]) -> np.ndarray:
    """sum_k p_k s_k B_k A_k as plain dense matrices."""
    total = sum(one.num_examples for one in updates)
    products = [one.client.scaling * np.float64(one.tensors[B]) @ np.float64(one.tensors[A]) for one in updates]
    return np.sum([one.num_examples / total * p for one, p in zip(updates, products, strict=True)], axis=0)


def product(model: Tensors, scaling: float) -> np.ndarray:
    """What tensors add to the weight, merged factors included."""
    dense = scaling * np.float64(model[B]) @ np.float64(model[A])
    if MERGE + A in model:
        dense = dense + np.float64(model[MERGE + B]) @ np.float64(model[MERGE + A])
    return dense


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-6) -> bool:
    """Whether two matrices agree to float32, in which factors travel."""
    return float(np.linalg.norm(got - wanted)) <= tolerance * float(np.linalg.norm(wanted))
