"""Every strategy with every method that it admits, two rounds each, through Flower's messages and the real client.

A pair that the start-up check lets through must run; one that it refuses must be refused with both names. The base
model is a toy BERT; clients train one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_grid import grid_of_app, nodes
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedpeft import config as cfg
from fedpeft.client.app import build_app
from fedpeft.client.building import runtime_for
from fedpeft.client.runtime import Runtime
from fedpeft.config.pairs import pair_problems
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError
from fedpeft.core.paths import conf_dir
from fedpeft.core.tensors import specs, subtract
from fedpeft.engines.session import travelling
from fedpeft.strategies.base import FedPeft

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
STRATEGIES = sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml"))
NODES = nodes(5)
SETTINGS: dict[str, tuple[str, ...]] = {
    "slora": ("strategy.sparse_rounds=1",),
    "fedpeptao": ("strategy.warmup_rounds=1",),
    "merge_search": ("strategy.evaluations=10",),
}
"""What a strategy's YAML needs to be told for two rounds of five clients."""
SMALL: dict[str, tuple[str, ...]] = {}
"""What makes a method small enough for the toy model."""


@pytest.fixture(scope="module")
def strategies(toy: list[str]) -> dict[str, Callable[[], Strategy]]:
    """Return a maker of each strategy, for two rounds of five clients that train with SGD."""
    makers = {}
    for name in STRATEGIES:
        config = cfg.compose([*toy, *common(), f"strategy={name}", *SETTINGS.get(name, ())])
        makers[name] = lambda node=config["strategy"]: cfg.build(node)
    return makers


def common() -> list[str]:
    return ["rounds=2", "cohort_size=5", "client.local_steps=1", "client.optimizer=sgd", "client.lr=0.05"]


@pytest.fixture(scope="module", params=METHODS)
def client(request: pytest.FixtureRequest, toy: list[str], tmp_path_factory: Any) -> tuple[str, Runtime, Any]:
    """Return a method's name, its runtime on the toy model and a ClientApp that uses it."""
    name = request.param
    base = [one for one in toy if not one.startswith("method.")]
    config = cfg.compose([*base, *common(), f"method={name}", *SMALL.get(name, ())])
    config["run_dir"] = str(tmp_path_factory.mktemp(name))
    text = travelling(config)
    try:
        return name, runtime_for(text, None), build_app(text, None)
    except ConfigError as error:
        pytest.skip(f"not defined on BERT: {error}")


def start(strategy: Strategy, runtime: Runtime, app: Any) -> ArrayRecord:
    if isinstance(strategy, FedPeft):
        strategy.view = replace(strategy.view, ranks=runtime.ranks)
        strategy.search_loss = lambda tensors: runtime.evaluate_shard(tensors, 0).mean_loss
    return strategy.start(grid_of_app(NODES, app), wire.encode(runtime.initial), num_rounds=2).arrays


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_admissible_pair_runs_and_an_inadmissible_one_is_refused(
    name: str, client: tuple[str, Runtime, Any], strategies: dict[str, Callable[[], Strategy]]
) -> None:
    _, runtime, app = client
    strategy = strategies[name]()
    problems = list(pair_problems(strategy, runtime.method, runtime.codec))
    if problems:
        assert all(type(strategy).__name__ in one and type(runtime.method).__name__ in one for one in problems)
        return
    kept: list[str] = []
    strategy.observers = (lambda event: kept.extend([event.reason] if hasattr(event, "reason") else []),)  # type: ignore[attr-defined]
    after = wire.decode_own(start(strategy, runtime, app))
    assert kept == [], kept
    assert specs(after) == runtime.shared_spec
    moved = {key for key, value in subtract(after, runtime.initial).items() if np.any(value)}
    assert moved or name in ("local_only",)


def test_the_matrix_has_what_the_configs_offer() -> None:
    """The start-up check that the matrix asks is the one that a launch asks."""
    bad = cfg.compose(["strategy=ffa_lora", "method=prefix"])
    with pytest.raises(ConfigError, match=r"strategy FFALoRA needs LoRA factors .* method PrefixTuning has none"):
        cfg.check(bad)
