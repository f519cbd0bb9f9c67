"""A linear module to whose weight trained values are added at masked places."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional


class MaskedLinear(nn.Module):
    """Stands before a frozen linear module and computes with ``W0 + scatter(values)``.

    The sum is float32 whatever the base holds. Backward forms the whole gradient of the weight and keeps the masked
    entries of it: training costs what training the weight would.

    Attributes:
        sparse_values: (nnz,) float32, zero at first.
        active: whether values are added; without, the base module runs as it is.

    Args:
        base_layer: a ``Linear``, or a ``Conv1D`` whose weight is (in_features, out_features).
        positions: (nnz,) flat indices into the weight as the module stores it.
    """

    def __init__(self, base_layer: nn.Module, positions: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.active = True
        weight = cast(torch.Tensor, base_layer.weight)
        self.register_buffer("positions", positions.to(weight.device), persistent=False)
        self.sparse_values = nn.Parameter(torch.zeros(positions.shape, dtype=torch.float32, device=weight.device))

    def weight_sum(self) -> torch.Tensor:
        """Return ``W0 + scatter(values)``, float32, as the base module stores its weight."""
        weight = cast(torch.Tensor, self.base_layer.weight)
        positions = cast(torch.Tensor, self.positions)
        return weight.float().reshape(-1).index_add(0, positions, self.sparse_values).view(weight.shape)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the module's output, (..., out_features)."""
        if not self.active:
            return cast(torch.Tensor, self.base_layer(x, *args, **kwargs))
        weight, bias = self.weight_sum().to(x.dtype), cast("torch.Tensor | None", self.base_layer.bias)
        if type(self.base_layer).__name__ != "Conv1D":
            return functional.linear(x, weight, bias)
        rows = torch.addmm(cast(torch.Tensor, bias), x.reshape(-1, x.shape[-1]), weight)
        return rows.view(*x.shape[:-1], -1)
