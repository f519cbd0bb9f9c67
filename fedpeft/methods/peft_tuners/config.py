"""Configs of bottleneck adapters and Compacter, as HF peft keeps them in ``adapter_config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from peft import PeftConfig


class AdapterType(str, Enum):  # noqa: UP042 - as peft's own PeftType, whose printed form its status report takes apart
    """Names of our adapter kinds, beside those of peft's ``PeftType``."""

    BOTTLENECK = "BOTTLENECK"
    COMPACTER = "COMPACTER"


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters after linear modules.

    Attributes:
        bottleneck_size: width k of the bottleneck.
        activation: ``gelu``, ``relu``, ``silu`` or ``tanh`` between the projections.
        placement: ``houlsby`` or ``pfeiffer``: which modules, where ``target_modules`` is None.
        target_modules: names of linear modules that adapters follow, or one regular expression of full names.
        exclude_modules: names of modules that get none.
        modules_to_save: modules that train whole, e.g. the classification head.
    """

    bottleneck_size: int = 16
    activation: str = "gelu"
    placement: str = "houlsby"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = AdapterType.BOTTLENECK


@dataclass
class CompacterConfig(BottleneckConfig):
    """Bottleneck adapters whose projections are sums of Kronecker products.

    Attributes:
        phm_dim: number n of summands, which divides every size.
        phm_rank: rank r of the second factor of each product.
    """

    phm_dim: int = 4
    phm_rank: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterType.COMPACTER
