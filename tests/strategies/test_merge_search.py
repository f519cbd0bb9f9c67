"""Merging coefficients are found where they are known, and a run's search never sees what is evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import HEAD, change, relative_error, update, weighted_change, world

from fedpeft.cli.launch import launch
from fedpeft.client.building import build_runtime
from fedpeft.core.errors import ConfigError
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies.flexlora import FlexLoRA
from fedpeft.strategies.merge_search import MergeSearch
from fedpeft.strategies.view import View

Make = Callable[..., dict[str, Any]]
A, B = "layer.0.m.lora_A.weight", "layer.0.m.lora_B.weight"
START = {A: np.eye(2, dtype=np.float32), B: np.eye(2, dtype=np.float32) / 2, HEAD: np.float32([1, 1])}
"""Product 2 B A = identity."""


def reply(client_id: int, num_examples: int, dense: list[list[float]], head: list[float]) -> ClientUpdate:
    tensors = {A: START[A], B: np.float32(dense) / 2, HEAD: np.float32(head)}
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples, rank=2, scaling=2.0)
    return ClientUpdate(client=client, tensors=tensors, num_examples=num_examples, sent=START)


REPLIES = [reply(0, 1, [[2, 0], [0, 1]], [3, 1]), reply(1, 3, [[1, 0], [0, 2]], [1, 5])]
"""Changes of the product: 1 at (0, 0) from client 0, 1 at (1, 1) from client 1; of the head: (2, 0) and (0, 4)."""


def strategy(target: dict[str, list[Any]], **options: Any) -> MergeSearch:
    """Return a strategy in its search round; the loss is the squared distance of the model from a target."""
    made = MergeSearch(**{"cohort_size": 2, "evaluations": 400, "search_every": 1, **options})
    made.view = View(ranks=RankPlan(rank=2, default=2, scaling_for=lambda rank: 2.0))

    def loss(tensors: Tensors) -> float:
        model = change(tensors, 2.0)
        return float(sum(np.square(model[key] - np.array(value)).sum() for key, value in target.items()))

    made.search_loss = loss
    return made


def test_known_coefficients_are_found() -> None:
    """Identity + diag(0.2, 1.5) and (1, 1) + (0.2 * 2, 1.5 * 4): lambda = (0.2, 1.5), where the mean has (1/4, 3/4)."""
    made = strategy({"layer.0.m": [[1.2, 0], [0, 2.5]], HEAD: [1.4, 7]})
    after = change(made.aggregate(START, REPLIES), 2.0)
    assert after["layer.0.m"] == pytest.approx(np.diag([1.2, 2.5]), abs=1e-2)
    assert after[HEAD] == pytest.approx([1.4, 7], abs=2e-2)
    notes = dict(made.notes())
    assert notes["coefficients"] == {"all": pytest.approx([0.2, 1.5], abs=5e-3)}
    assert notes["clients"] == [0, 1]
    assert notes["search_loss"] < 1e-3
    # At (1/4, 3/4): 0.05^2 + 0.75^2 in the product, 0.1^2 + 3^2 in the head.
    assert notes["search_loss_of_the_mean"] == pytest.approx(0.0025 + 0.5625 + 0.01 + 9, abs=1e-4)


def test_layers_and_what_is_in_none_have_coefficients_of_their_own() -> None:
    """The product wants (0.2, 1.5), the head (-0.5, 0.5): no one pair of coefficients gives both."""
    made = strategy({"layer.0.m": [[1.2, 0], [0, 2.5]], HEAD: [0, 3]}, groups="layers", evaluations=800)
    made.aggregate(START, REPLIES)
    assert made.notes()["coefficients"] == {
        "layer.0": pytest.approx([0.2, 1.5], abs=2e-2),
        "others": pytest.approx([-0.5, 0.5], abs=2e-2),
    }


def test_without_a_search_it_is_the_mean_of_products() -> None:
    here = world(MergeSearch)
    made, flex = MergeSearch(cohort_size=5), FlexLoRA(cohort_size=5)
    for one in (made, flex):
        here.enter(one)
    replies = [update(made, here, client_id) for client_id in range(5)]
    ours, theirs = (change(one.aggregate(here.tensors, replies), here.ranks.scaling) for one in (made, flex))
    assert relative_error(ours, theirs) < 1e-6
    assert relative_error({HEAD: ours[HEAD]}, {HEAD: weighted_change(here, replies)[HEAD]}) < 1e-6
    assert made.notes() == {}


@pytest.mark.parametrize(("every", "searched"), [(0, [5]), (2, [2, 4, 5]), (3, [3, 5])])
def test_searches_when_due_and_in_the_last_round(every: int, searched: list[int]) -> None:
    made = strategy({HEAD: [0, 0]}, search_every=every, evaluations=12)
    made._final_round = 5
    found = []
    for server_round in range(1, 6):
        made.view = replace(made.view, server_round=server_round)
        made.aggregate(START, REPLIES)
        found += [server_round] if made.notes() else []
    assert found == searched


def test_the_search_is_a_function_of_seed_and_round() -> None:
    def points(seed: int, server_round: int) -> Any:
        made = strategy({HEAD: [0, 0]}, seed=seed, evaluations=12)
        made.view = replace(made.view, server_round=server_round)
        made.aggregate(START, REPLIES)
        return made.notes()["coefficients"]

    assert points(0, 1) == points(0, 1)
    assert points(0, 1) != points(1, 1)
    assert points(0, 1) != points(0, 2)


def test_too_many_coefficients_and_too_few_evaluations_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="at most 50 coefficients, got 60: cohort_size 60 x 1 groups"):
        MergeSearch(cohort_size=60)
    with pytest.raises(ConfigError, match=r"strategy\.evaluations must be at least 11 for 10 coefficients, got 10"):
        MergeSearch(cohort_size=10, evaluations=10)
    many = {f"layer.{i}.x": np.zeros(1, np.float32) for i in range(6)}
    with pytest.raises(ConfigError, match="at most 50 coefficients, got 60: cohort_size 10 x 6 groups"):
        MergeSearch(cohort_size=10, groups="layers").client_tensors(many, world(MergeSearch).client(0))
    MergeSearch(cohort_size=10).client_tensors(many, world(MergeSearch).client(0))


def test_nothing_to_search_on_is_said_in_the_first_round() -> None:
    made = MergeSearch()
    made._final_round = 3
    with pytest.raises(ConfigError, match="needs search_loss"):
        made.client_tensors(START, world(MergeSearch).client(0))


def test_wrong_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MergeSearch(search_examples=0, search_every=-1, evaluations=1.5, sigma=0, groups="heads")  # type: ignore[arg-type]
    names = ("search_examples", "search_every", "evaluations", "sigma", "groups")
    assert [line.split()[0] for line in caught.value.problems] == [f"strategy.{name}" for name in names]


def toy_search(toy_config: Make, *more: str, name: str = "run") -> dict[str, Any]:
    return toy_config(
        "strategy=merge_search", "strategy.search_examples=24", "strategy.evaluations=10", "rounds=2",
        "method.ranks={phone: 1}", *more, name=name,
    )  # fmt: skip


def test_search_examples_are_held_out_and_never_evaluated(toy_config: Make) -> None:
    plain, searching = build_runtime(toy_config()).examples, build_runtime(toy_search(toy_config)).examples
    assert plain.search_rows.tolist() == []
    assert len(searching.search_rows) == 24
    assert sorted([*searching.eval_rows, *searching.search_rows]) == plain.eval_rows.tolist()
    assert searching.rows.tolist() == plain.rows.tolist()
    with pytest.raises(ConfigError, match=r"search_examples must be below the 80 held-out examples, got 80"):
        build_runtime(toy_search(toy_config, "strategy.search_examples=80"))


def test_a_run_searches_in_its_last_round_whatever_the_workers(toy_config: Make) -> None:
    found = []
    for workers in (1, 2):
        config = toy_search(toy_config, f"engine.workers={workers}", name=f"w{workers}")
        assert launch(config, []) == 0
        run_dir = Path(config["run_dir"])
        lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
        assert lines[0]["strategy"] == {}
        notes = lines[1]["strategy"]
        assert notes["search_loss"] <= notes["search_loss_of_the_mean"]
        assert notes["search_evaluations"] == 9
        assert len(notes["coefficients"]["all"]) == 4
        found.append((notes, lines[1]["eval"], (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()))
    assert found[0] == found[1]
