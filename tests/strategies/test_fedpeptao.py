"""FedPepTAO: which layers are chosen, what travels then, who keeps what, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy as maker
from worlds import HEAD, World, update, world

from fedpeft import config as cfg
from fedpeft.cli.launch import launch, new_config
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.events import ClientRejected, Event
from fedpeft.core.orders import Orders
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.server.checkpoint import find_checkpoints
from fedpeft.strategies.fedpeptao import FedPepTAO

GLOBAL = {HEAD: np.float32([0]), **{f"m.layers.{i}.x": np.float32([8]) for i in range(4)}}


def reply(
    client_id: int, num_examples: int, tensors: Tensors, scores: tuple[float, ...] = (), **metrics: float
) -> ClientUpdate:
    client = ClientInfo(client_id=client_id, node_id=client_id, num_examples=num_examples)
    named = {name.replace("_", "-"): value for name, value in metrics.items()}
    return ClientUpdate(
        client=client, tensors=tensors, num_examples=num_examples, metrics=named, sent=GLOBAL, layer_scores=scores
    )


def scored(strategy: FedPepTAO) -> Tensors:
    """Client 0 has 1 example, client 7 has 3: mean scores 10/4, 26/4, 26/4, 12/4 -> layers 1 and 2."""
    here = [
        reply(0, 1, GLOBAL, (1.0, 8.0, 2.0, 9.0)),
        reply(7, 3, GLOBAL, (3.0, 6.0, 8.0, 1.0)),
    ]
    return strategy.aggregate(GLOBAL, here)


def enter(strategy: FedPepTAO, server_round: int) -> None:
    world(FedPepTAO).enter(strategy, server_round)


def test_layers_of_highest_mean_score_are_chosen() -> None:
    strategy = FedPepTAO(warmup_rounds=1, layer_share=0.5)
    assert Orders.read(strategy.client_config(world(FedPepTAO).client(0))).probe == "layers"
    scored(strategy)
    assert strategy.notes() == {
        "layer_scores": [2.5, 6.5, 6.5, 3.0],
        "layers": [1, 2],
        "layer_share": 0.5,
        "server_lr": 0.05,
    }


def test_warm_up_goes_on_for_its_rounds_and_measures_the_share_in_the_last() -> None:
    """Shares 0.2 and 0.3, whatever the examples: rho = 0.25, one layer of four, that of the first highest score."""
    strategy = FedPepTAO(warmup_rounds=2, layer_share="measured")
    client = world(FedPepTAO).client(0)
    scored(strategy)
    assert strategy.notes() == {"layer_scores": [2.5, 6.5, 6.5, 3.0]}
    enter(strategy, 2)
    assert Orders.read(strategy.client_config(client)).probe == "curvature"
    strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL, layer_share=0.2), reply(7, 3, GLOBAL, layer_share=0.3)])
    assert strategy.notes()["layers"] == [1]
    assert strategy.notes()["layer_share"] == 0.25
    assert Orders.read(strategy.client_config(client)).probe == ""


def test_layers_above_the_adapters_topmost_do_not_matter() -> None:
    """Four layers have adapters in a model of six, whose clients score all: the last two scores are left out."""
    strategy = FedPepTAO(warmup_rounds=1, layer_share=0.5)
    strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL, (1.0, 8.0, 2.0, 9.0, 50.0, 60.0))])
    assert strategy.notes()["layer_scores"] == [1.0, 8.0, 2.0, 9.0]
    assert strategy.notes()["layers"] == [1, 3]


def test_layers_without_adapters_are_not_chosen() -> None:
    """LLaMA-Adapter sits in the topmost layers: 2 and 3 of 4, whose scores are the lowest; one of the two travels."""
    topmost = {key: value for key, value in GLOBAL.items() if "layers.0" not in key and "layers.1" not in key}
    strategy = FedPepTAO(warmup_rounds=1, layer_share=0.5)
    strategy.aggregate(topmost, [reply(0, 1, topmost, (9.0, 8.0, 1.0, 2.0))])
    assert strategy.notes()["layers"] == [3]


def test_a_share_is_measured_after_the_scores_however_late_they_come() -> None:
    """Round 1 came to nothing, so that the last round of warm-up brings scores: the next one measures and chooses."""
    strategy = FedPepTAO(warmup_rounds=2, layer_share="measured")
    client = world(FedPepTAO).client(0)
    enter(strategy, 2)
    scored(strategy)
    assert "layers" not in strategy.notes()
    enter(strategy, 3)
    assert Orders.read(strategy.client_config(client)).probe == "curvature"
    strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL, layer_share=0.25)])
    assert strategy.notes()["layers"] == [1]


def test_without_scores_warm_up_asks_again() -> None:
    strategy = FedPepTAO(warmup_rounds=1)
    told: list[Event] = []
    strategy.observers = (told.append,)
    with pytest.raises(WireError, match="0 sound replies"):
        strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL, (1.0, 2.0))])
    assert [(e.client_id, e.check) for e in told if isinstance(e, ClientRejected)] == [(0, "measured")]
    enter(strategy, 2)
    assert Orders.read(strategy.client_config(world(FedPepTAO).client(0))).probe == "layers"


@pytest.mark.parametrize("share", [-0.5, 1.5, None])
def test_a_share_out_of_range_is_left_out_by_name(share: float | None) -> None:
    strategy = FedPepTAO(warmup_rounds=2, layer_share="measured")
    told: list[Event] = []
    strategy.observers = (told.append,)
    scored(strategy)
    enter(strategy, 2)
    odd = {} if share is None else {"layer_share": share}
    strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL, layer_share=0.5), reply(7, 3, GLOBAL, **odd)])
    assert [e.client_id for e in told if isinstance(e, ClientRejected)] == [7]
    assert strategy.notes()["layer_share"] == 0.5


def test_random_layers_are_as_many_and_come_from_the_seed() -> None:
    def chosen(seed: int) -> Any:
        strategy = FedPepTAO(warmup_rounds=1, select="random", seed=seed)
        assert Orders.read(strategy.client_config(world(FedPepTAO).client(0))).probe == ""
        strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL)])
        return strategy.notes()["layers"]

    found = [chosen(seed) for seed in range(12)]
    assert all(len(layers) == 2 for layers in found)
    assert len({tuple(layers) for layers in found}) > 2
    assert chosen(3) == found[3]


def test_all_layers_travel_where_all_are_selected() -> None:
    strategy = FedPepTAO(warmup_rounds=1, select="all")
    strategy.aggregate(GLOBAL, [reply(0, 1, GLOBAL)])
    client = world(FedPepTAO).client(0)
    assert strategy.notes()["layers"] == [0, 1, 2, 3]
    assert strategy.client_tensors(GLOBAL, client) is GLOBAL
    assert strategy.client_config(client) == {}


def test_the_other_layers_are_sent_until_the_client_has_them() -> None:
    """Client 7 answers in the first round after warm-up, client 0 does not: it is sent the layers again."""
    strategy = FedPepTAO(warmup_rounds=1, control=False)
    after = scored(strategy)
    clients = {k: ClientInfo(client_id=k, node_id=k, num_examples=1) for k in (0, 7)}
    selected = [HEAD, "m.layers.1.x", "m.layers.2.x"]
    for client in clients.values():
        orders = Orders.read(strategy.client_config(client))
        assert strategy.client_tensors(after, client) is after
        assert orders.keep == ("layers.0", "layers.3")
        assert orders.returned(after) == selected
    enter(strategy, 2)
    strategy.aggregate(after, [reply(7, 3, {key: after[key] for key in selected})])
    assert sorted(strategy.client_tensors(after, clients[7])) == selected
    assert Orders.read(strategy.client_config(clients[7])).keep == ("layers.0", "layers.3")
    assert sorted(strategy.client_tensors(after, clients[0])) == sorted(GLOBAL)
    enter(strategy, 3)
    strategy.aggregate(after, [reply(0, 1, {key: after[key] for key in selected})])
    assert all(sorted(strategy.client_tensors(after, client)) == selected for client in clients.values())


def test_frozen_layers_are_put_away_once_and_held() -> None:
    strategy = FedPepTAO(warmup_rounds=1, control=False, unselected="frozen")
    after = scored(strategy)
    client = ClientInfo(client_id=7, node_id=7, num_examples=3)
    first = Orders.read(strategy.client_config(client))
    assert first.freeze == first.store == ("layers.0", "layers.3")
    enter(strategy, 2)
    strategy.aggregate(after, [reply(7, 3, {key: after[key] for key in first.returned(after)})])
    assert Orders.read(strategy.client_config(client)) == Orders(held=("layers.0", "layers.3"))


def after_warm_up(**options: Any) -> tuple[FedPepTAO, Tensors]:
    """Return the second round by hand: from 8, client 0 (p 1/4, 1 step) to 4 and client 7 (p 3/4, 3 steps) to 2."""
    strategy = FedPepTAO(warmup_rounds=1, lr=0.5, num_clients=4, **options)
    start = scored(strategy)
    enter(strategy, 2)
    selected = {HEAD: np.float32([4]), "m.layers.1.x": np.float32([4]), "m.layers.2.x": np.float32([8])}
    other = {HEAD: np.float32([0]), "m.layers.1.x": np.float32([2]), "m.layers.2.x": np.float32([8])}
    return strategy, strategy.aggregate(
        start, [reply(0, 1, selected, train_steps=1), reply(7, 3, other, train_steps=3)]
    )


def test_the_selected_layers_move_and_the_head_is_averaged() -> None:
    """Layer 1: a = 2.5, c = 2.5, sum p_k c_k = 5 (``test_drive``), w = 2.5 + 0.05 * 2.5 = 2.625.

    Layer 2 did not move: c = c_k = 0, w = 8. Head: 4 / 4 + 0 = 1. Layers 0 and 3 stay.
    """
    strategy, after = after_warm_up()
    assert {key: value.item() for key, value in after.items()} == {
        HEAD: 1.0,
        "m.layers.0.x": 8.0,
        "m.layers.1.x": 2.625,
        "m.layers.2.x": 8.0,
        "m.layers.3.x": 8.0,
    }
    assert strategy.notes()["server_lr"] == 0.05 * 0.99


@pytest.mark.parametrize(("options", "layer_1"), [({"server": "average"}, 2.5), ({"gradient": "plain"}, 2.5975)])
def test_average_and_plain_gradient_by_hand(options: dict[str, str], layer_1: float) -> None:
    """Average: 2.5. Plain: v = 0.1 * 5.5 + 2.5 - 5 = -1.95, w = 2.5 + 0.05 * 1.95 = 2.5975."""
    assert after_warm_up(**options)[1]["m.layers.1.x"].item() == pytest.approx(layer_1, abs=1e-6)


def test_a_client_that_does_not_say_its_steps_is_left_out() -> None:
    strategy = FedPepTAO(warmup_rounds=1, lr=0.5, num_clients=4)
    start = scored(strategy)
    enter(strategy, 2)
    with pytest.raises(WireError, match="0 sound replies"):
        strategy.aggregate(start, [reply(0, 1, {HEAD: np.float32([4])})])


def test_order_of_arguments_and_equal_states_give_equal_bits() -> None:
    here = world(FedPepTAO)

    def play(rounds: int) -> Tensors:
        strategy, tensors = FedPepTAO(warmup_rounds=1, num_clients=5), here.tensors
        for server_round in range(1, rounds + 1):
            now = World(tensors=tensors, ranks=here.ranks, mixed=False)
            now.enter(strategy, server_round)
            tensors = strategy.aggregate(
                tensors, [update(strategy, now, client_id, server_round=server_round) for client_id in range(5)]
            )
        return tensors

    one, other = play(4), play(4)
    assert all(one[key].tobytes() == other[key].tobytes() for key in one)


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FedPepTAO(
            warmup_rounds=0, layer_share=0, select="best", unselected="x", server="sgd", gradient="none",
            control="yes", momentum=1.0, server_lr=0, lr=-1, num_clients=0, reset_local_optimizer=False,
        )  # fmt: skip
    names = (
        "select", "unselected", "server", "gradient", "layer_share", "warmup_rounds", "control", "momentum",
        "server_lr", "lr", "num_clients", "reset_local_optimizer",
    )  # fmt: skip
    assert [line.split()[0] for line in caught.value.problems] == [f"strategy.{name}" for name in names]
    with pytest.raises(ConfigError, match=r"warmup_rounds must be a whole number >= 2 where strategy\.layer_share"):
        FedPepTAO(warmup_rounds=1, layer_share="measured")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of four layers."""
    return str(maker.write_model(tmp_path_factory.mktemp("deep") / "model", hidden=16, layers=4))


def make(toy: list[str], deep: str, run_dir: Path, rounds: int) -> dict[str, Any]:
    """Return the config of a run with prefixes on the model of four layers."""
    own = [
        "strategy=fedpeptao", "method=prefix", "method.num_virtual_tokens=4", f"model.path={deep}", f"rounds={rounds}",
        "num_clients=3", "cohort_size=2", "task.held_out=20", "client.batch_size=4", "strategy.control=false",
        "strategy.layer_share=measured", "evaluate.clients_every=4",
    ]  # fmt: skip
    overrides = [one for one in toy if not one.startswith(("method.", "model.path"))]
    return new_config({**cfg.compose([*overrides, *own]), "run_dir": str(run_dir)})


def rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def files(run_dir: Path) -> dict[str, bytes]:
    """Return the newest checkpoint's tensors and state, and what every client keeps."""
    _, newest = find_checkpoints(run_dir / "checkpoints")[-1]
    own = sorted((run_dir / "checkpoints" / "clients").glob("*/*.safetensors"))
    last = {path.parent.name: path.read_bytes() for path in own}
    return last | {name: (newest / name).read_bytes() for name in ("tensors.safetensors", "state.safetensors")}


def test_a_run_sends_the_selected_share_and_resumes_bit_for_bit(toy: list[str], deep: str, tmp_path: Path) -> None:
    whole = make(toy, deep, tmp_path / "whole", 4)
    assert launch(whole, []) == 0
    run_dir = Path(whole["run_dir"])
    notes = rows(run_dir, "rounds.jsonl")[-1]["strategy"]
    count = len(notes["layers"])
    assert len(notes["layer_scores"]) == 4 > count
    layer = 4 * 4 * 2 * 16
    sent = {row["round"]: row["adapter_bytes"] for row in rows(run_dir, "clients.jsonl")}
    assert sent == {1: 4 * layer, 2: 4 * layer, **dict.fromkeys(range(3, 5), count * layer)}
    down: dict[int, list[int]] = {}
    for row in rows(run_dir, "clients.jsonl"):
        down.setdefault(row["client_id"], []).extend([row["bytes_down"]] if row["round"] > 2 else [])
    for first, *later in (sizes for sizes in down.values() if sizes):
        assert all(first - size >= (4 - count) * layer for size in later)
    part = make(toy, deep, tmp_path / "part", 3)
    assert launch(part, []) == 0
    assert launch({**part, "resume": part["run_dir"], "rounds": 4}, [f"resume={part['run_dir']}", "rounds=4"]) == 0
    assert files(Path(part["run_dir"])) == files(run_dir)
    keep = ("round", "eval", "bytes_up", "bytes_down", "train_loss", "strategy")
    one, other = (
        [{k: row[k] for k in keep} for row in rows(Path(c["run_dir"]), "rounds.jsonl")][3:] for c in (whole, part)
    )
    assert one == other
