"""A refused pair is told which of its own settings is in the way."""

from __future__ import annotations

import pytest

from fedpeft import config as cfg
from fedpeft.config.pairs import pair_problems


def problems(*overrides: str) -> list[str]:
    config = cfg.compose(list(overrides))
    return list(pair_problems(*(cfg.build(config[name]) for name in ("strategy", "method", "codec"))))


@pytest.mark.parametrize(
    ("overrides", "end"),
    [
        (["strategy=ffa_lora", "method.dora=true"], "method LoRA has none while method.dora=true"),
        (["strategy=ffa_lora", "method=prefix"], "method PrefixTuning has none"),
        (
            ["strategy=fedpeptao", "method=prefix", "method.reparameterize=true"],
            "method PrefixTuning has none while method.reparameterize=true",
        ),
    ],
)
def test_a_setting_that_takes_a_trait_away_is_named(overrides: list[str], end: str) -> None:
    """Without it the line would tell the user to take the method that stands there already."""
    assert [line for line in problems(*overrides) if line.endswith(end)] == problems(*overrides) != []


@pytest.mark.parametrize(
    ("codec", "setting"),
    [
        ("topk", "set codec.error_feedback=false,"),
        ("topk_int8", "set codec.stages.0.error_feedback=false,"),
        ("low_rank_float16", "set codec.stages.0.error_feedback=false,"),
    ],
)
def test_the_setting_to_turn_off_is_one_that_the_codec_has(codec: str, setting: str) -> None:
    (line,) = problems("strategy=flora", f"codec={codec}")
    assert setting in line
    switch = setting.removeprefix("set ").removesuffix(",")
    assert problems("strategy=flora", f"codec={codec}", switch) == []
