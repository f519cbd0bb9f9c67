"""Factors that never train, with a small matrix that does between them (LoRA-SB)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class FixedLinear(nn.Linear):
    """A linear map without bias whose weight gets no gradient, whatever is asked of it.

    Args:
        weight: (out_features, in_features), taken over.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``W x`` of (..., in_features)."""
        return functional.linear(x, self.weight.detach())


class CoredLinear(FixedLinear):
    """``R A x`` with A fixed and R (rank, rank) trained.

    Attributes:
        core: R, float32, zero at first.

    Args:
        weight: A (rank, in_features), taken over.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight)
        rank = weight.shape[0]
        self.core = nn.Parameter(torch.zeros(rank, rank, dtype=torch.float32, device=weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``R A x`` of (..., in_features)."""
        return functional.linear(super().forward(x), self.core)
