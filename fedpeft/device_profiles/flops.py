"""Floating-point operations of a training step, counted on the real model without its weights.

The model is built on torch's meta device: shapes without storage, so a billion parameters cost a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from fedpeft.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

_LENGTHS = (8, 16, 32)
_PROBE = (2, 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """FLOPs of one step as a polynomial in batch size B and sequence length S.

        flops = per_example * B + per_token * B * S + per_token_pair * B * S^2

    Attributes:
        per_example: work on whole examples, e.g. a classifier on the pooled token.
        per_token: work on single tokens, the linear layers.
        per_token_pair: work on pairs of tokens, attention.
    """

    per_example: float
    per_token: float
    per_token_pair: float

    def step(self, batch_size: int, seq_len: int) -> float:
        """Return the FLOPs of a step on ``batch_size`` examples padded to ``seq_len`` tokens."""
        return batch_size * (self.per_example + seq_len * (self.per_token + seq_len * self.per_token_pair))


def measure_step_flops(build_model: Callable[[], torch.nn.Module], *, forward_only: bool = False) -> StepFlops:
    """Count the FLOPs of forward and backward of a model as it will be trained.

    Frozen parameters get no gradient, and the backward pass ends at the first trainable layer, so what a method saves
    shows: about 3 forwards for full fine-tuning, about 2 for LoRA in every layer, less for LoRA in the last layers
    only. A multiply-add is two operations; element-wise work, softmax, norms and the optimiser are not counted.

    Three counts at B = 1 and S = 8, 16, 32 determine the polynomial exactly (the counts are integers), and a fourth at
    B = 2, S = 24 must agree with it.

    Args:
        build_model: returns the model ready to train, with frozen base and trainable adapters. It is called under
            ``torch.device("meta")`` and must build from a config with ``attn_implementation="eager"``: torch does not
            count its fused attention. The model is called with ``input_ids`` (B, S) and ``attention_mask``
            (B, 1, S, S) and returns an object with ``logits``.
        forward_only: count an evaluation instead, in which nothing has a gradient.

    Raises:
        ConfigError: nothing is trainable, attention is not eager, or the FLOPs are no such polynomial.
    """
    import torch

    with torch.device("meta"):
        # A bfloat16 base with float32 heads needs autocast to run; counts do not depend on the dtype, so one dtype
        # serves.
        model = build_model().float()
    _check_countable(model, forward_only=forward_only)
    model.train(not forward_only)
    flops = solve({length: _count(model, 1, length, forward_only=forward_only) for length in _LENGTHS})
    counted, predicted = _count(model, *_PROBE, forward_only=forward_only), flops.step(*_PROBE)
    if abs(counted - predicted) > 1e-9 * counted:
        raise ConfigError(
            f"FLOPs of {type(model).__name__} are no polynomial in batch and length: {counted} counted at (B, S) = "
            f"{_PROBE}, {predicted:.0f} expected (use a model whose tokens all take the same path)"
        )
    return flops


def solve(counts: Mapping[int, int]) -> StepFlops:
    """Return the polynomial through three counts at batch size 1, given as {sequence length: FLOPs}.

    Newton's divided differences in exact fractions.
    """
    (x0, y0), (x1, y1), (x2, y2) = sorted(counts.items())
    slope = Fraction(y1 - y0, x1 - x0)
    curve = (Fraction(y2 - y1, x2 - x1) - slope) / (x2 - x0)
    return StepFlops(
        per_example=float(y0 - slope * x0 + curve * x0 * x1),
        per_token=float(slope - curve * (x0 + x1)),
        per_token_pair=float(curve),
    )


def _check_countable(model: torch.nn.Module, *, forward_only: bool) -> None:
    problems = []
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
    if attention != "eager":
        problems.append(f"attention must be built as eager to be counted, got {attention} (set attn_implementation)")
    if not forward_only and not any(p.requires_grad for p in model.parameters()):
        problems.append(f"{type(model).__name__} has no trainable parameter: attach a method before counting its step")
    if problems:
        raise ConfigError(problems)


def _count(model: torch.nn.Module, batch_size: int, seq_len: int, *, forward_only: bool) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        input_ids = torch.zeros(batch_size, seq_len, dtype=torch.long)
        # A 2-D mask makes transformers read values, which meta tensors do not have; a 4-D one is taken as it is.
        attention_mask = torch.zeros(batch_size, 1, seq_len, seq_len)
    model.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(not forward_only):
        loss = model(input_ids=input_ids, attention_mask=attention_mask).logits.float().sum()
        if not forward_only:
            loss.backward()
    return int(counter.get_total_flops())
