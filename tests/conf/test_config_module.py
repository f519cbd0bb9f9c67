"""Plain data from Hydra: what travels, what is hashed, what differs."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError


def test_composed_config_is_plain_data() -> None:
    config = cfg.compose(["rounds=7", "cohort_size=3"])
    assert type(config) is dict
    assert json.loads(cfg.to_json(config)) == config
    assert config["strategy"]["cohort_size"] == 3
    assert config["name"] == "sentiment-fedavg"
    assert "hydra" not in config


def test_json_is_canonical_and_keeps_letters() -> None:
    assert cfg.to_json({"b": 1, "a": {"d": "\u00e4", "c": None}}) == '{"a":{"c":null,"d":"\u00e4"},"b":1}'


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "rounds=99",
        "display=none",
        "engine.workers=7",
        "resume=x",
        "report=false",
        "checkpoint.every=3",
    ],
)
def test_hash_leaves_out_where_and_how_far(override: str) -> None:
    assert cfg.config_hash(cfg.compose([override])) == cfg.config_hash(cfg.compose([]))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method.rank=4",
        "client.lr=0.1",
        "head=local",
        "task.held_out=100",
        "cohort_size=3",
        "guard.max_norm=5",
    ],
)
def test_hash_sees_what_is_computed(override: str) -> None:
    assert cfg.config_hash(cfg.compose([override])) != cfg.config_hash(cfg.compose([]))


def test_missing_values_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.plain(OmegaConf.create({"a": "???", "b": {"c": "???"}, "d": 1}))
    assert caught.value.problems == ["a has no value: give a=...", "b.c has no value: give b.c=..."]
    with pytest.raises(ConfigError, match="nowhere"):
        cfg.plain(OmegaConf.create({"a": "${nowhere}"}))


def test_look_up_follows_dots() -> None:
    assert cfg.look_up({"a": {"b": {"c": 3}}}, "a.b.c") == 3
    assert cfg.look_up({"a": {"b": 1}}, "a.b.c") is None
    assert cfg.look_up({}, "a") is None


def test_differences_name_path_old_and_new() -> None:
    old, new = {"a": 1, "b": {"c": [1], "d": 2}, "e": 5}, {"a": 1, "b": {"c": [2], "d": 2}, "f": 6}
    assert cfg.differences(old, new) == ["b.c: was [1], now [2]", "e: was 5, now None", "f: was None, now 6"]
    assert cfg.differences(old, old) == []


def test_another_class_is_one_difference_whatever_its_arguments() -> None:
    old = {"codec": {"_target_": "a.TopK", "fraction": 0.05}, "seed": 0}
    new = {"codec": {"_target_": "a.Int8", "scale_per": "row"}, "seed": 0}
    assert cfg.differences(old, new) == ["codec: was a.TopK, now a.Int8"]


def test_build_passes_arguments_and_unwraps_our_errors() -> None:
    assert cfg.build({"_target_": "fedpeft.methods.lora.LoRA", "rank": 3}, alpha=6).scaling == 2.0
    with pytest.raises(ConfigError) as caught:
        cfg.build({"_target_": "fedpeft.methods.lora.LoRA", "rank": 0, "alpha": 0})
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match=r"LoRA.*unexpected keyword argument 'rnk'"):
        cfg.build({"_target_": "fedpeft.methods.lora.LoRA", "rnk": 3})
    assert cfg.build({"_target_": "fedpeft.methods.lora.LoRA", "target_modules": ["a"]}).target_modules == ["a"]
