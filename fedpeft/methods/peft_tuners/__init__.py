"""Adapter kinds that HF peft lacks, made known to it: bottleneck adapters, Compacter, BitFit, some prompts.

Importing this package is what registers them, as importing ``peft`` registers peft's own. An adapter that fedpeft saved
with one of these methods therefore needs that one import wherever it is loaded:

    import fedpeft.methods.peft_tuners
    model = PeftModel.from_pretrained(base, folder)

``peft.utils.register_peft_method`` admits only the members of peft's own ``PeftType``, which cannot be extended; the
tables that it fills are public (``peft.mapping``) and keyed by name, so they are filled here.
"""

from __future__ import annotations

from typing import cast

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from fedpeft.methods.peft_tuners.bitfit import BiasType, BitFitConfig, BitFitLayer, BitFitModel
from fedpeft.methods.peft_tuners.config import AdapterType, BottleneckConfig, CompacterConfig
from fedpeft.methods.peft_tuners.layer import BottleneckLayer, CompacterLayer, PHMLinear
from fedpeft.methods.peft_tuners.model import BottleneckModel, CompacterModel
from fedpeft.methods.peft_tuners.virtual_tokens import VirtualTokensConfig, VirtualTokensModel, VirtualTokensType

__all__ = [
    "AdapterType",
    "BiasType",
    "BitFitConfig",
    "BitFitLayer",
    "BitFitModel",
    "BottleneckConfig",
    "BottleneckLayer",
    "BottleneckModel",
    "CompacterConfig",
    "CompacterLayer",
    "CompacterModel",
    "PHMLinear",
    "VirtualTokensConfig",
    "VirtualTokensModel",
    "VirtualTokensType",
]

for _kind, _config, _model in (
    (AdapterType.BOTTLENECK, BottleneckConfig, BottleneckModel),
    (AdapterType.COMPACTER, CompacterConfig, CompacterModel),
    (BiasType.BITFIT, BitFitConfig, BitFitModel),
    (VirtualTokensType.VIRTUAL_TOKENS, VirtualTokensConfig, VirtualTokensModel),
):
    # The tables are typed for peft's own names, and looked up with the plain string that a config file holds.
    _name = cast(PeftType, _kind)
    PEFT_TYPE_TO_CONFIG_MAPPING[_name] = _config
    PEFT_TYPE_TO_TUNER_MAPPING[_name] = cast(type[BaseTuner], _model)
    PEFT_TYPE_TO_PREFIX_MAPPING[_name] = _model.prefix
