"""What pulls on a client's gradients besides its data: FedProx, SCAFFOLD's control variates, HetLoRA's tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.core.orders import CONTROL, Orders
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.types import Tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulls:
    """Terms that are added in each local step.

    Attributes:
        prox: mu of FedProx (Li et al. 2020, arXiv:1812.06127): mu (x - x_sent) joins the gradient before it is clipped.
        anchors: each proximal parameter with its value x_sent.
        control: each corrected parameter with what is added after clipping: c - c_k of SCAFFOLD (Karimireddy et al.
            2020, arXiv:1910.06378).
        tails: the tails B[:, t:] and A[t:, :] of each pair are taken of these (A, B, t).
        tail_weight: weight of sum ||B[:, t:]||_F ||A[t:, :]||_F in the loss (HetLoRA, Cho et al. 2024,
            arXiv:2401.06432).
    """

    prox: float = 0.0
    anchors: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    control: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    tails: Sequence[tuple[torch.Tensor, torch.Tensor, int]] = ()
    tail_weight: float = 0.0

    def loss(self) -> torch.Tensor | float:
        """Return what is added to the loss."""
        import torch

        norm = torch.linalg.vector_norm
        return self.tail_weight * sum(norm(b[:, t:]) * norm(a[t:]) for a, b, t in self.tails) if self.tails else 0.0

    def before_clipping(self) -> None:
        """Add the proximal term's gradient."""
        for parameter, anchor in self.anchors:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.prox)

    def after_clipping(self) -> None:
        """Add the control variates."""
        for parameter, correction in self.control:
            if parameter.grad is not None:
                parameter.grad.add_(correction)


def pulls_of(
    orders: Orders, shared: Mapping[str, torch.Tensor], trained: Sequence[str], payload: Tensors
) -> Pulls | None:
    """Return the pulls that a message asks for, None for none.

    Args:
        orders: the message's orders.
        shared: the live tensors, loaded.
        trained: keys that train.
        payload: the message's tensors.
    """
    import torch

    control = [
        (shared[key], torch.from_numpy(payload[CONTROL + key].copy()).to(shared[key].device))
        for key in trained
        if CONTROL + key in payload
    ]
    if not (orders.prox or orders.tail_weight or control):
        return None
    pairs = [pair for pair in lora_pairs(shared, strict=False) if orders.tail_rank < shared[pair.a].shape[0]]
    return Pulls(
        prox=orders.prox,
        anchors=[(shared[key], shared[key].detach().clone()) for key in trained] if orders.prox else (),
        control=control,
        tails=[(shared[p.a], shared[p.b], orders.tail_rank) for p in pairs] if orders.tail_weight else (),
        tail_weight=orders.tail_weight,
    )
