"""What the check of a whole config says of parts that do not go together; pairs are in ``test_pair_problems``."""

from __future__ import annotations

import pytest
from toy import refusals

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError

REFUSED = {
    ("strategy=fed_sb", "method=lora_sb", "codec=int8"): "FedSB takes the directions that all later rounds train in",
    ("strategy=fedadam", "strategy@strategy.rule=median"): "FedAdam cannot step over CoordinateMedian, which",
    ("strategy=krum", "cohort_size=4"): "cohort_size",
    (
        "strategy=fedpeptao",
        "method=prefix",
        "strategy.warmup_rounds=5",
    ): "warmup_rounds must be below rounds (5)",
    ("method=slora", "method.density=0"): "density",
    ("method.rank=2000",): "rank must be in 1..1024",
    (
        "strategy=flora",
        "method.ranks={toaster:4}",
    ): "method.ranks names toaster, which no client is",
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
    config = cfg.compose(overrides)
    assert refusals(config) == []
    assert len(refusals({**config, "rounds": 0})) == 1, "the check looks at such a config"
