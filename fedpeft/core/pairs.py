"""LoRA factors as tensors: whose they are by name, and how they change rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedpeft.core.errors import FedPeftError

A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
CORE_SUFFIX = ".lora_R.weight"
"""Name, after the module's, of the matrix that trains between LoRA-SB's fixed factors."""


class FactorError(FedPeftError):
    """Factors do not fit each other, or something was asked of them that they cannot give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Names of one module's factors.

    Attributes:
        module: name of the adapted module.
        a: key of ``lora_A`` (rank, in_features).
        b: key of ``lora_B`` (out_features, rank).
    """

    module: str
    a: str
    b: str


def lora_pairs(keys: Iterable[str], *, strict: bool = True) -> tuple[Pair, ...]:
    """Return the pairs among tensor names ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``, modules sorted.

    Args:
        keys: names of tensors; others than factors, such as a head's, are passed over.
        strict: refuse a factor without its partner; otherwise such a factor is passed over too.

    Raises:
        FactorError: strict, and a module has only one of its factors; all such modules are named.

    Example:
        >>> [pair.module for pair in lora_pairs(["y.lora_B.weight", "head.weight", "y.lora_A.weight"])]
        ['y']
    """
    names = set(keys)
    modules_a = {key.removesuffix(A_SUFFIX) for key in names if key.endswith(A_SUFFIX)}
    modules_b = {key.removesuffix(B_SUFFIX) for key in names if key.endswith(B_SUFFIX)}
    lone = sorted(modules_a ^ modules_b)
    if strict and lone:
        missing = ", ".join(module + (B_SUFFIX if module in modules_a else A_SUFFIX) for module in lone)
        raise FactorError(f"every module needs both lora_A and lora_B, got none for {missing}")
    return tuple(
        Pair(module=module, a=module + A_SUFFIX, b=module + B_SUFFIX) for module in sorted(modules_a & modules_b)
    )


def pad_rank(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return A (rank, n) and B (m, rank) with zeros added: the same product (HetLoRA, arXiv:2401.06432).

    Args:
        a: (r, n), any dtype, which is kept.
        b: (m, r), likewise.
        rank: r or more.

    Raises:
        FactorError: the rank is below r, or the factors do not fit each other.

    Example:
        >>> a, b = pad_rank(np.float32([[1, 2]]), np.float32([[3]]), rank=2)
        >>> a.tolist(), b.tolist()
        ([[1.0, 2.0], [0.0, 0.0]], [[3.0, 0.0]])
    """
    extra = rank - _rank(a, b)
    if extra < 0:
        raise FactorError(f"rank to pad to must be {rank - extra} or more, got {rank} (use cut_rank)")
    return np.pad(a, ((0, extra), (0, 0))), np.pad(b, ((0, 0), (0, extra)))


def cut_rank(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``rank`` rows of A and columns of B, as copies (HetLoRA, arXiv:2401.06432).

    Not the nearest change of that rank, which ``factors.truncate`` gives; it undoes ``pad_rank``.

    Args:
        a: (r, n), any dtype, which is kept.
        b: (m, r), likewise.
        rank: 0 .. r.

    Raises:
        FactorError: the rank is negative or above r, or the factors do not fit each other.

    Example:
        >>> a, b = cut_rank(np.float32([[1, 2], [3, 4]]), np.float32([[5, 6]]), rank=1)
        >>> a.tolist(), b.tolist()
        ([[1.0, 2.0]], [[5.0]])
    """
    most = _rank(a, b)
    if not 0 <= rank <= most:
        raise FactorError(f"rank to cut to must be in 0..{most}, got {rank} (use pad_rank for more)")
    return a[:rank].copy(), b[:, :rank].copy()


def _rank(a: np.ndarray, b: np.ndarray) -> int:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise FactorError(f"factors must be A (r, n) and B (m, r), got {a.shape} and {b.shape}")
    return int(a.shape[0])
