"""How many local steps the clients took, by their own word, and who is not believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedpeft.core.events import ClientRejected
from fedpeft.core.types import ClientUpdate

STEPS = "train-steps"


def split_by_steps(
    updates: Sequence[ClientUpdate], server_round: int, factor: float = math.inf
) -> tuple[list[ClientUpdate], list[ClientRejected]]:
    """Return the updates with a sound number of local steps, and what is to be told of the others.

    Sound is a whole number from 1 to ``factor`` times the round's median.

    Args:
        updates: of one round.
        server_round: the round.
        factor: caps what one false claim can do where steps scale the result.
    """
    claims = [one.metrics.get(STEPS, 0) for one in updates]
    whole = [claim for claim in claims if claim >= 1 and claim == int(claim)]
    cap = factor * float(np.median(whole)) if whole else 0.0
    good: list[ClientUpdate] = []
    rejected: list[ClientRejected] = []
    for one, claim in zip(updates, claims, strict=True):
        if claim >= 1 and claim == int(claim) and claim <= cap:
            good.append(one)
            continue
        reason = f"{STEPS} must be a whole number in 1..{cap:g}, got {claim:g}"
        event = ClientRejected(
            server_round=server_round, kind="train", client_id=one.client.client_id, check="steps", reason=reason
        )
        rejected.append(event)
    return good, rejected
