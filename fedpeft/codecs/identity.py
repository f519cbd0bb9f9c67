"""No codec: tensors travel as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.codecs.base import PLAIN, Codec, Shape
from fedpeft.core.types import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Codec):
    """Sends float32 as it is.

    Example:
        >>> Identity().encode({"x": np.float32([1, 2])}, np.random.default_rng(0))["x"].tolist()
        [1.0, 2.0]
    """

    name = "none"
    lossless = True
    unbiased = True

    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        return {PLAIN: TensorSpec(shape, "float32")}

    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {PLAIN: change}

    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        return parts[PLAIN]

    def _bound(self, change: np.ndarray) -> float:
        return 0.0
