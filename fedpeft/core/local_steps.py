"""How many local steps the clients took, by their own word, and who is not believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedpeft.core.guard import Rejection
from fedpeft.core.types import ClientUpdate

STEPS = "train-steps"


def split_by_steps(
    updates: Sequence[ClientUpdate], factor: float = math.inf
) -> tuple[list[ClientUpdate], list[Rejection]]:
    """Return the updates with a sound number of local steps, and the others with a reason each.

    Sound is a whole number from 1 to ``factor`` times the round's median.

    Args:
        updates: of one round.
        factor: caps what one false claim can do where steps scale the result.
    """
    claims = [one.metrics.get(STEPS, 0) for one in updates]
    whole = [claim for claim in claims if claim >= 1 and claim == int(claim)]
    cap = factor * float(np.median(whole)) if whole else 0.0
    good: list[ClientUpdate] = []
    rejected: list[Rejection] = []
    for one, claim in zip(updates, claims, strict=True):
        if claim >= 1 and claim == int(claim) and claim <= cap:
            good.append(one)
            continue
        reason = f"{STEPS} must be a whole number in 1..{cap:g}, got {claim:g}"
        rejected.append(
            Rejection(client_id=one.client.client_id, node_id=one.client.node_id, check="steps", reason=reason)
        )
    return good, rejected
