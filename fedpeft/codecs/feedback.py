"""The client's end of a codec: its change with what earlier rounds left behind. The server's is in ``core.guard``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedpeft.codecs.base import Codec
from fedpeft.core.errors import WireError
from fedpeft.core.tensors import canonical, specs
from fedpeft.core.types import Tensors


def compress(
    codec: Codec,
    sent: Mapping[str, np.ndarray],
    trained: Mapping[str, np.ndarray],
    residual: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[Tensors, Tensors]:
    """Return what a client sends, and what it keeps for its next round (error feedback, arXiv:1901.09847).

    The target is ``(trained - sent) + residual``, computed in float32. With error feedback the new residual is
    ``target - decode(encoded)``, rounded to float32 once: ``residual + decoded`` is the target to half a unit in the
    last place of the residual, and bit for bit with top-k, where each value either travels or stays.

    Args:
        codec: how to pack.
        sent: what the server sent.
        trained: the same tensors after local training.
        residual: what the client kept after its last round, empty at first. Tensors that do not travel this time keep
            theirs.
        rng: the only source of randomness.

    Returns:
        The encoded tensors, and the new residual: empty without error feedback. A lossless codec sends the trained
        tensors themselves, because ``sent + (trained - sent)`` can differ from them in the last place.

    Raises:
        WireError: a change is not finite or too large, or checks ``keys`` and ``residual``: tensors do not fit.
    """
    if specs(sent) != specs(trained):
        raise WireError("keys", "the trained tensors have other names, shapes or dtypes than the sent ones")
    if codec.lossless:
        return canonical(trained), {}
    with np.errstate(over="ignore", invalid="ignore"):
        target = {key: np.asarray(trained[key] - sent[key]) for key in sorted(trained)}
        if codec.error_feedback:
            target = _plus(target, residual)
    encoded = codec.encode(target, rng)
    if not codec.error_feedback:
        return encoded, {}
    decoded = codec.decode(encoded, specs(target))
    kept = {key: np.asarray(target[key] - decoded[key]) for key in target}
    return encoded, dict(sorted({**residual, **kept}.items()))


def _plus(change: Tensors, residual: Mapping[str, np.ndarray]) -> Tensors:
    for key in sorted(set(change) & set(residual)):
        if residual[key].shape != change[key].shape or residual[key].dtype != change[key].dtype:
            raise WireError(
                "residual",
                f"{key} was kept as {residual[key].dtype} {residual[key].shape}, the change is {change[key].dtype} "
                f"{change[key].shape} (remove the client's state to start anew)",
            )
    return {key: np.asarray(value + residual[key]) if key in residual else value for key, value in change.items()}
