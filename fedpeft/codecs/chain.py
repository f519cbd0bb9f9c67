"""Two codecs in a row: fewer values, then fewer bits for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedpeft.codecs.base import Codec, NumberFormat, Reducer, Shape, join
from fedpeft.core.errors import ConfigError
from fedpeft.core.types import TensorSpec

ORDER = "a chain goes from topk or low_rank to float16, int8 or int4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain(Codec):
    """Applies a number format to the float32 parts that a reducer leaves: kept values, factors, plain tensors.

    Other orders are refused: rounding before a choice or an SVD loses bits and saves none, and two reducers or two
    formats undo one another's statement. Bound (max norm): the reducer's own, and how far the format's moves it.

    Args:
        stages: a reducer, then a number format. With ``error_feedback`` on any of them, the chain's whole loss is kept.

    Raises:
        ConfigError: another number or order of stages.

    Example:
        >>> from fedpeft.codecs.quantize import Int8
        >>> from fedpeft.codecs.topk import TopK
        >>> chain = Chain(stages=[TopK(fraction=0.1), Int8()])
        >>> chain.name, sorted(chain.parts((1000, 10)))
        ('topk+int8', ['indices', 'values:scales', 'values:values'])
    """

    stages: Sequence[Codec]
    name: str = field(init=False)
    sparse: bool = field(init=False)
    unbiased: bool = field(init=False)
    error_feedback: bool = field(init=False)

    def __post_init__(self) -> None:
        stages = tuple(self.stages)
        names = " + ".join(stage.name if isinstance(stage, Codec) else repr(stage) for stage in stages)
        sound = len(stages) == 2 and isinstance(stages[0], Reducer) and isinstance(stages[1], NumberFormat)
        if not sound:
            raise ConfigError(f"{ORDER}, got {names or 'nothing'} (set codec.stages)")
        derived = {
            "stages": stages,
            "name": "+".join(stage.name for stage in stages),
            "sparse": any(stage.sparse for stage in stages),
            "unbiased": all(stage.unbiased for stage in stages),
            "error_feedback": any(stage.error_feedback for stage in stages),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def _reducer(self) -> Reducer:
        return self.stages[0]  # type: ignore[return-value]

    def _layout(self, shape: Shape) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for part, one in self._reducer.parts(shape).items():
            stored = self.stages[1].parts(one.shape) if one.dtype == "float32" else {"": one}
            found |= {join(part, inner): spec for inner, spec in stored.items()}
        return found

    def _pack(self, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        packed: dict[str, np.ndarray] = {}
        for part, array in self._reducer.pack(change, rng).items():
            stored = self.stages[1].pack(array, rng) if array.dtype == np.float32 else {"": array}
            packed |= {join(part, inner): value for inner, value in stored.items()}
        return packed

    def _unpack(self, parts: Mapping[str, np.ndarray], shape: Shape) -> np.ndarray:
        reduced: dict[str, np.ndarray] = {}
        for part, one in self._reducer.parts(shape).items():
            if one.dtype == "float32":
                stored = {inner: parts[join(part, inner)] for inner in self.stages[1].parts(one.shape)}
                reduced[part] = self.stages[1].unpack(stored, one.shape)
            else:
                reduced[part] = parts[part]
        return self._reducer.unpack(reduced, shape)

    def _bound(self, change: np.ndarray) -> float:
        # A reducer draws nothing, so that any generator gives the parts that every run gives.
        parts = self._reducer.pack(change, np.random.default_rng(0))
        errors = {part: self.stages[1].bound(array) for part, array in parts.items() if array.dtype == np.float32}
        return self._reducer.bound(change) + self._reducer.spread(parts, errors)
