"""Attention masks for texts with virtual tokens in front, and float32 for the networks that make such tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional


def with_front(mask: torch.Tensor | None, num_virtual_tokens: int, *, queries: bool) -> torch.Tensor | None:
    """Return an attention mask that also lets every token see the virtual tokens in front.

    Args:
        mask: (batch, length) with 1 for a token and 0 for padding; or (batch, 1, queries, keys), either boolean with
            True where attention is allowed or a number that is added to the scores; or None.
        num_virtual_tokens: how many come in front.
        queries: the virtual tokens attend too, so that the mask grows in rows as well as in columns.
    """
    if mask is None:
        return None
    if mask.ndim == 2:
        return functional.pad(mask, (num_virtual_tokens, 0), value=1)
    allowed = 1 if mask.dtype == torch.bool else 0
    return functional.pad(mask, (num_virtual_tokens, 0, num_virtual_tokens if queries else 0, 0), value=allowed)


def full_precision(values: torch.Tensor) -> AbstractContextManager[object]:
    """Return the context in which products of these values stay in their own dtype, whatever surrounds it."""
    kind = values.device.type
    # torch has no autocast for the meta device, on which operations are counted.
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
