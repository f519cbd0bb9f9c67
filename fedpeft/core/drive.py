"""FedPepTAO's server side: momentum over rounds and control variates that never leave the server (arXiv:2310.15080)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedpeft.core.local_steps import STEPS
from fedpeft.core.products import shares, to_float32
from fedpeft.core.tensors import weighted_mean
from fedpeft.core.types import ClientUpdate, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How the server moves.

    Attributes:
        momentum: share of the old velocity in the new one, in [0, 1).
        difference: move by how the pseudo-gradient changed since the round before, not by itself.
        control: correct by what the clients' gradients differ from everybody's.
        client_lr: the clients' learning rate.
        num_clients: all registered clients.
        decay: factor on the server's learning rate after each round.
        floor: the server's learning rate never falls below.
    """

    momentum: float = 0.9
    difference: bool = True
    control: bool = True
    client_lr: float = 0.01
    num_clients: int = 1
    decay: float = 0.99
    floor: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """What the server remembers from round to round.

    Attributes:
        lr: its learning rate eta_s.
        velocity: v, float64.
        last: the last pseudo-gradient D, float64.
        mean: the mean control variate c, float64.
        own: the clients' control variates c_k by client id, float32.
    """

    lr: float
    velocity: Tensors = field(default_factory=dict)
    last: Tensors = field(default_factory=dict)
    mean: Tensors = field(default_factory=dict)
    own: Mapping[int, Tensors] = field(default_factory=dict)


def advance(drive: Drive, start: Tensors, updates: Sequence[ClientUpdate], rule: Rule) -> tuple[Tensors, Drive]:
    """Return the new values of the tensors ``start`` and what the server remembers then.

        a    = sum_k p_k w_k,   D = w - a,   p_k = n_k / sum_j n_j
        c_k' = c_k - c + (w - w_k) / (tau_k client_lr)
        c'   = c + |S| / N  sum_k tau_k (c_k' - c_k) / sum_k tau_k
        g    = D_before - D  (``difference``; 0 in the first round)   or   g = D
        v'   = sum_k p_k (momentum v + (1 - momentum) g + c' - c_k')
        w'   = a - lr v';       lr' = max(decay lr, floor)

    Args:
        drive: what the server remembers.
        start: w, the tensors that the rule moves, as they were sent.
        updates: w_k of at least one client with ``train-steps`` tau_k, by client id.
        rule: how.

    Returns:
        w' in float32, and the new memory.

    Raises:
        WireError: check ``aggregate``: a value does not fit float32.
    """
    weights = shares(updates)
    mean, own = _controls(drive, start, updates, rule) if rule.control else (drive.mean, drive.own)
    trained = [{key: one.tensors[key].astype(np.float64) for key in start} for one in updates]
    average = weighted_mean(trained, weights)
    new, velocity, gradients = {}, {}, {}
    for key, w in start.items():
        gradients[key] = w - average[key]
        g = gradients[key]
        if rule.difference:
            g = drive.last[key] - g if key in drive.last else np.zeros_like(g)
        push = rule.momentum * drive.velocity.get(key, np.zeros_like(g)) + (1 - rule.momentum) * g
        if rule.control:
            apart = [p * own[one.client.client_id][key] for p, one in zip(weights, updates, strict=True)]
            push = push + mean[key] - np.sum(apart, axis=0, dtype=np.float64)
        velocity[key] = push
        new[key] = to_float32(average[key] - drive.lr * push, key)
    lr = max(rule.decay * drive.lr, rule.floor)
    return new, Drive(lr=lr, velocity=velocity, last=gradients, mean=mean, own=own)


def _controls(
    drive: Drive, start: Tensors, updates: Sequence[ClientUpdate], rule: Rule
) -> tuple[Tensors, dict[int, Tensors]]:
    """Return c' and all c_k'."""
    steps = sum(one.metrics[STEPS] for one in updates)
    mean = {key: drive.mean.get(key, np.zeros(w.shape)) for key, w in start.items()}
    moved = {key: np.zeros(w.shape) for key, w in start.items()}
    own = dict(drive.own)
    for one in updates:
        before, after = own.get(one.client.client_id, {}), {}
        for key, w in start.items():
            gradient = (w.astype(np.float64) - one.tensors[key]) / (one.metrics[STEPS] * rule.client_lr)
            kept = before.get(key, np.zeros(w.shape, np.float32))
            after[key] = to_float32(kept - mean[key] + gradient, key)
            moved[key] += one.metrics[STEPS] / steps * (after[key].astype(np.float64) - kept)
        own[one.client.client_id] = after
    share = len(updates) / rule.num_clients
    return {key: mean[key] + share * moved[key] for key in start}, own


def packed(drive: Drive) -> dict[str, np.ndarray | float]:
    """Return the memory as arrays and numbers by name, as checkpoints hold them."""
    parts = {"velocity": drive.velocity, "last": drive.last, "mean": drive.mean}
    arrays = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    own = {f"client-{k}.{key}": value for k, one in drive.own.items() for key, value in one.items()}
    return {"lr": drive.lr, **arrays, **own}


def unpacked(state: Mapping[str, np.ndarray | int | float | str]) -> Drive:
    """Return the memory that ``packed`` gave; names of others are passed over."""
    parts: dict[str, Tensors] = {"velocity": {}, "last": {}, "mean": {}}
    own: dict[int, Tensors] = {}
    for name in sorted(state):
        part, _, key = name.partition(".")
        if part in parts:
            parts[part][key] = np.asarray(state[name])
        elif part.startswith("client-"):
            own.setdefault(int(part.removeprefix("client-")), {})[key] = np.asarray(state[name])
    return Drive(lr=float(state["lr"]), own=own, **parts)
