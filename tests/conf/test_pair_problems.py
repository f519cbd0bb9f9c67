"""Which pairs of strategy, method and codec are refused, each by a line that names both sides."""

from __future__ import annotations

import pytest

from fedpeft import config as cfg
from fedpeft.config.pairs import NEEDS, pair_problems
from fedpeft.core import traits

RANKS = "method.ranks={phone: 4}"
DORA = "method.dora=true"


def problems(*overrides: str) -> list[str]:
    config = cfg.compose(list(overrides))
    return list(pair_problems(*(cfg.build(config[name]) for name in ("strategy", "method", "codec"))))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy=ffa_lora", "method=prefix"], "strategy FFALoRA needs LoRA factors A and B"),
        (["strategy=flora", "method=slora"], "strategy FLoRA needs factors that can change rank"),
        (["strategy=fedpeptao", "method=lora"], "strategy FedPepTAO needs an adapter whose layers travel separately"),
        (["strategy=slora", "method=lora"], "strategy SLoRA needs values at masked places of the base"),
        (["strategy=fed_sb", "method=lora"], "strategy FedSB needs a core matrix between fixed factors"),
        (["strategy=fedavg", RANKS], "strategy FedAvg needs one rank for all clients, method.ranks gives [4, 8]"),
        (["strategy=ties", DORA, RANKS], "method LoRA cannot differ in rank from client to client"),
        (["strategy=local_only", DORA, RANKS], "method LoRA cannot differ in rank from client to client"),
        (["strategy=median", "codec=topk"], "strategy CoordinateMedian reads every coordinate of a client's change"),
        (["strategy=flexlora", "codec=low_rank"], "strategy FlexLoRA renews the factors' basis in each round"),
    ],
)
def test_a_pair_that_cannot_work_is_one_line(overrides: list[str], line: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_a_strategy_of_flowers_own_reads_tensors_as_they_come() -> None:
    class Stock:
        """What a strategy that is none of fedpeft's looks like: no class attribute of ours."""

    config = cfg.compose(["codec=int8"])
    found = list(pair_problems(Stock(), cfg.build(config["method"]), cfg.build(config["codec"])))
    assert found == ["strategy Stock is Flower's own and reads tensors as they come, codec int8 changes them"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=flexlora", RANKS],
        ["strategy=ties", DORA],
        ["strategy=fedavg", "method.ranks={phone: 8}"],
        ["strategy=fedavg", "codec=topk"],
        ["strategy=flexlora", "codec=low_rank", "codec.error_feedback=false"],
        ["strategy=flexlora", "codec=int8"],
        ["strategy=median", "codec=int8"],
    ],
)
def test_a_pair_that_works_is_let_through(overrides: list[str]) -> None:
    assert problems(*overrides) == []


def test_every_trait_has_words_for_a_person() -> None:
    assert set(NEEDS) == {value for name, value in vars(traits).items() if name.isupper()}
