"""Which strategy, method and codec are refused together, and that the line says what to choose."""

from __future__ import annotations

import pytest

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError

REFUSED = {
    (
        "strategy=ffa_lora",
        "method=prefix",
    ): "needs LoRA factors A and B (method=lora or rslora), method Prefix",
    ("strategy=slora",): "SLoRA needs values at masked places of the base (method=slora), method LoRA has none",
    ("strategy=fed_sb",): "FedSB needs a core matrix between fixed factors (method=lora_sb), method LoRA has none",
    ("strategy=fedpeptao",): "strategy FedPepTAO needs an adapter whose layers travel separately",
    ("strategy=rolora", "method.ranks={phone:4}"): "RoLoRA needs one rank for all clients, method.ranks gives [4, 8]",
    ("strategy=median", "codec=topk"): "CoordinateMedian compares clients coordinate by coordinate, and codec topk",
    ("strategy=flexlora", "codec=low_rank"): "FlexLoRA renews the factors' basis in each round, so what codec low_rank",
    ("strategy=fed_sb", "method=lora_sb", "codec=int8"): "FedSB takes the directions that all later rounds train in",
    (
        "strategy=fedadam",
        "strategy@strategy.rule=median",
    ): "FedAdam cannot step over CoordinateMedian, which",
    ("strategy=krum", "cohort_size=4"): "cohort_size",
    ("method=slora", "method.density=0"): "density",
    ("method.rank=2000",): "rank must be in 1..1024",
}


@pytest.mark.parametrize("overrides", list(REFUSED), ids=" ".join)
def test_an_unsound_pair_is_refused_in_one_line(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.check(cfg.compose(list(overrides)))
    lines = [line for line in caught.value.problems if REFUSED[overrides] in line]
    assert len(lines) == 1, caught.value.problems
    assert "\n" not in lines[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=flexlora", "method.ranks={phone:4}"],
        ["strategy=flexlora", "codec=low_rank", "codec.error_feedback=false"],
        ["strategy=fed_sb", "method=lora_sb", "strategy.init=random", "codec=int8"],
        ["strategy=fedadam", "strategy@strategy.rule=ffa_lora"],
        ["strategy=fedpeptao", "method=adapter"],
    ],
    ids=" ".join,
)
def test_a_sound_pair_is_not(overrides: list[str]) -> None:
    cfg.check(cfg.compose(overrides))
