"""Changes as full matrices, for rules that look at single entries: which of them are large, which way they point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedpeft.core.factors import Factors
from fedpeft.core.pairs import Pair, lora_pairs
from fedpeft.core.singular import Svd


def plain_pairs(tensors: Mapping[str, np.ndarray]) -> tuple[Pair, ...]:
    """Return the pairs whose product is all that changes their module, modules sorted.

    Left out are factors with a companion, such as DoRA's magnitudes or a core between them, and factors that are no
    matrices.

    Example:
        >>> names = ["x.lora_A.weight", "x.lora_B.weight", "y.lora_A.weight", "y.lora_B.weight", "y.lora_R.weight"]
        >>> [pair.module for pair in plain_pairs({name: np.eye(2) for name in names})]
        ['x']
    """
    found = lora_pairs(tensors, strict=False)
    return tuple(
        pair
        for pair in found
        if {key for key in tensors if key.startswith(f"{pair.module}.")} == {pair.a, pair.b}
        and tensors[pair.a].ndim == tensors[pair.b].ndim == 2
    )


def product(f: Factors) -> np.ndarray:
    """Return ``b a`` as an (m, n) matrix, float64.

    Example:
        >>> product(Factors(b=np.float64([[3], [4]]), a=np.float64([[0, 2]]))).tolist()
        [[0.0, 6.0], [0.0, 8.0]]
    """
    return np.asarray(f.b @ f.a)


def svd_of(x: np.ndarray) -> Svd:
    """Return the thin singular value decomposition of a full matrix; ``factors.svd`` is far cheaper on factors.

    The largest entry of each column of u is positive, as there.

    Example:
        >>> u, s, vt = svd_of(np.float64([[0, -6], [0, -8]]))
        >>> u[:, 0].round(12).tolist(), s.round(12).tolist(), (vt[0].round(12) + 0.0).tolist()
        ([0.6, 0.8], [10.0, 0.0], [0.0, -1.0])
    """
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    largest = np.abs(u).argmax(axis=0)
    sign = np.where(u[largest, np.arange(len(s))] < 0, -1.0, 1.0)
    return u * sign, s, vt * sign[:, None]
