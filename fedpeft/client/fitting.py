"""Fitting the model to what the server sent: names and shapes at a rank, what trains, what is added to the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.core.dense import plain_pairs
from fedpeft.core.errors import WireError
from fedpeft.core.orders import CONTROL, MERGE, Orders, matches
from fedpeft.core.pairs import FactorError, cut_rank, lora_pairs
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors, TensorSpec
from fedpeft.methods.base import Tunable, load_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_MERGED_RANK = 2**15
HELD = "held."
"""Prefix, in a client's own state, of what it put away for the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What became of each tensor.

    Attributes:
        trained: keys that train, in sorted order; those of ``Tunable.shared`` alone.
        kept: keys among them that stay on the client.
        values: what each shared tensor was before training.
    """

    trained: list[str]
    kept: list[str]
    values: Tensors


def at_rank(initial: Tensors, rank: int) -> Tensors:
    """Return tensors with their LoRA factors cut to a rank: the first rows of A and columns of B; 0 for as they are.

    Args:
        initial: the run's tensors, at the largest rank.
        rank: the rank wanted.

    Raises:
        WireError: check ``orders``: the rank is above what the method has, or its factors have something beside them
            that cannot be cut with them, such as LoRA-SB's core.
    """
    if rank == 0:
        return initial
    pairs, cut = lora_pairs(initial, strict=False), dict(initial)
    if pairs != plain_pairs(initial):
        raise WireError("orders", f"rank {rank} was ordered of a method whose factors cannot change rank")
    for pair in pairs:
        most = initial[pair.a].shape[0]
        if rank > most:
            raise WireError("orders", f"rank must be at most {most}, the method's own, got {rank}")
        cut[pair.a], cut[pair.b] = cut_rank(initial[pair.a], initial[pair.b], rank)
    return cut


def payload_spec(orders: Orders, shapes: Mapping[str, tuple[int, ...]], initial: Tensors) -> dict[str, TensorSpec]:
    """Return what a message's tensors must look like.

    Args:
        orders: the message's orders.
        shapes: what it claims to hold.
        initial: the run's tensors, at the largest rank.

    Raises:
        WireError: a name is unknown, or factors to merge do not fit their module.
    """
    known = specs(at_rank(initial, orders.rank))
    if not known.keys() & shapes.keys() and not orders.keep:
        raise WireError("keys", "no tensor of this run's model was sent")
    spec: dict[str, TensorSpec] = {}
    for key, shape in shapes.items():
        if key in known:
            spec[key] = known[key]
        elif key.startswith(CONTROL) and key.removeprefix(CONTROL) in known:
            spec[key] = known[key.removeprefix(CONTROL)]
        elif key.startswith(MERGE) and key.removeprefix(MERGE) in known:
            spec[key] = _merge_spec(key, shape, known[key.removeprefix(MERGE)])
        else:
            raise WireError("keys", f"unexpected {key[:80]!r}")
    try:
        pairs = lora_pairs([key.removeprefix(MERGE) for key in spec if key.startswith(MERGE)])
    except FactorError as error:
        raise WireError("keys", str(error)) from error
    for pair in pairs:
        rank_a, rank_b = spec[MERGE + pair.a].shape[0], spec[MERGE + pair.b].shape[1]
        if rank_a != rank_b:
            raise WireError("shape", f"factors to merge into {pair.module[:80]} have ranks {rank_a} and {rank_b}")
    return spec


def _merge_spec(key: str, shape: tuple[int, ...], own: TensorSpec) -> TensorSpec:
    axis = 0 if key.endswith("lora_A.weight") else 1
    fits = len(shape) == 2 and shape[1 - axis] == own.shape[1 - axis] and 1 <= shape[axis] <= MAX_MERGED_RANK
    if not key.endswith(("lora_A.weight", "lora_B.weight")) or not fits:
        raise WireError("shape", f"{key[:80]} has shape {shape}, which cannot be merged")
    return TensorSpec(shape, "float32")


def fit(tunable: Tunable, payload: Tensors, orders: Orders, initial: Tensors, own: Tensors) -> Fitted:
    """Load the payload into the model, with the initial or the client's own tensors where nothing was sent.

    Args:
        tunable: the model; its shared tensors take the shapes of the client's rank.
        payload: the checked tensors of a message.
        orders: the message's orders.
        initial: the run's tensors, at the largest rank.
        own: what the client kept and put away.

    Raises:
        WireError: check ``held``: the client does not have what the server believes it put away.
    """
    values: Tensors = {}
    trained: list[str] = []
    kept: list[str] = []
    for key, start in at_rank(initial, orders.rank).items():
        if key in payload:
            values[key] = payload[key]
            if not matches(key, orders.freeze):
                (kept if matches(key, orders.keep) else trained).append(key)
        elif matches(key, orders.held):
            values[key] = _own(own, HELD + key, start, needed=True)
        elif matches(key, orders.keep):
            values[key] = _own(own, key, start)
            kept.append(key)
        else:
            values[key] = start
    load_tensors(tunable.shared, values)
    trains = {*trained, *kept}
    for key, value in tunable.shared.items():
        value.requires_grad_(key in trains)
        value.grad = None
    tunable.configure(orders.scaling, frozenset(payload))
    return Fitted(trained=sorted(trains), kept=sorted(kept), values=values)


def put_away(payload: Tensors, orders: Orders, own: Tensors) -> Tensors:
    """Return what the client has put away for the server after this message."""
    stored = {HELD + key: payload[key] for key in payload if matches(key, orders.store)}
    return {key: value for key, value in own.items() if key.startswith(HELD)} | stored


def _own(own: Tensors, key: str, start: np.ndarray, *, needed: bool = False) -> np.ndarray:
    value = own.get(key)
    if value is not None and value.shape == start.shape:
        return value
    if needed:
        raise WireError("held", f"{key.removeprefix(HELD)[:80]} is not here (the server must send it again)")
    return start


@contextmanager
def merged(tunable: Tunable, payload: Tensors) -> Iterator[None]:
    """Add the payload's ``merge.`` factors to the frozen weights while the context lasts.

    The sums are float32, whatever the base holds: a bfloat16 weight would swallow small changes. The base's own arrays
    are put back untouched, so that workers go on sharing their memory.
    """
    factors = {key.removeprefix(MERGE): value for key, value in payload.items() if key.startswith(MERGE)}
    before = []
    try:
        for pair in lora_pairs(factors, strict=False):
            weight, transposed = frozen_weight(tunable.model, pair.module)
            before.append((weight, weight.data))
            change = _product(factors[pair.b], factors[pair.a], transposed=transposed)
            weight.data = weight.data.float() + change.to(weight.device)
        yield
    finally:
        for weight, data in before:
            weight.data = data


def frozen_weight(model: nn.Module, module: str) -> tuple[nn.Parameter, bool]:
    """Return the base weight beside a module's factors, and whether it is kept (in, out) as GPT-2 does."""
    layer = model.get_submodule(module.removeprefix("base_model.model."))
    base = layer.get_base_layer()  # type: ignore[operator]
    return base.weight, type(base).__name__ == "Conv1D"


def _product(b: np.ndarray, a: np.ndarray, *, transposed: bool) -> torch.Tensor:
    import torch

    left, right = torch.from_numpy(np.array(b)), torch.from_numpy(np.array(a))
    return right.T @ left.T if transposed else left @ right


def parameters(tunable: Tunable, trained: Sequence[str]) -> list[torch.Tensor]:
    """Return the tensors that the optimiser updates: the trained shared ones, then the client's own head."""
    return [*(tunable.shared[key] for key in trained), *tunable.local.values()]
