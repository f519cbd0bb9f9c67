"""The ClientApp through real messages on the toy model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.app import build_app
from fedpeft.client.building import runtime_for
from fedpeft.client.fitting import at_rank
from fedpeft.client.runtime import Runtime
from fedpeft.client.state import personal_state
from fedpeft.client.trainer import TrainResult, train
from fedpeft.core import wire
from fedpeft.core.guard import Expectation, UpdateGuard
from fedpeft.core.metrics import EVALUATE_METRICS, GROUP_METRICS, ROUND_METRICS
from fedpeft.core.seeds import derive
from fedpeft.core.types import ClientInfo, Tensors
from fedpeft.device_profiles.presets import list_profiles
from fedpeft.engines.flower_private import set_identity, set_message_id
from fedpeft.engines.grid import handle

HEAD = {"base_model.model.classifier.bias", "base_model.model.classifier.weight"}


class Client:
    """The app of one config with a default allow-list, and messages to it."""

    def __init__(self, config: dict[str, Any]) -> None:
        set_identity(run_id=1, node_id=1)
        self.config = config
        self.text = cfg.to_json(config)
        self.app: ClientApp = build_app(self.text)

    @property
    def runtime(self) -> Runtime:
        from fedpeft.client.app import DEFAULT_ALLOW

        return runtime_for(self.text, DEFAULT_ALLOW)

    def send(self, kind: str, content: RecordDict, client_id: int = 0, **node_config: Any) -> Message:
        message = Message(content, dst_node_id=100 + client_id, message_type=kind)
        set_message_id(message, "m")
        context = Context(
            run_id=1,
            node_id=100 + client_id,
            node_config={"partition-id": client_id, "num-partitions": 6, **node_config},
            state=RecordDict(),
            run_config={},
        )
        return handle(self.app, (message, context))[0]

    def instruction(
        self,
        server_round: int = 1,
        tensors: Tensors | None = None,
        identity: wire.Identity | None = None,
        **config: Any,
    ) -> RecordDict:
        record = wire.encode(self.runtime.initial if tensors is None else tensors)
        return wire.instruction(record, server_round, identity or self.runtime.identity, config)

    def train(self, client_id: int = 0, server_round: int = 1, **config: Any) -> Message:
        return self.send("train", self.instruction(server_round, **config), client_id)

    def own(self, client_id: int) -> Tensors:
        """Return what a client keeps for itself after its last round."""
        return personal_state(self.config, client_id).load(1000)

    def expectation(self, client_id: int, server_round: int = 1) -> dict[int, Expectation]:
        client = ClientInfo(client_id=client_id, node_id=100 + client_id, num_examples=1)
        return {
            client.node_id: Expectation(
                client=client, server_round=server_round, identity=self.runtime.identity, sent=self.runtime.initial
            )
        }


def make(toy: list[str], folder: Path, *more: str) -> Client:
    return Client(new_config({**cfg.compose([*toy, *more]), "run_dir": str(folder)}))


@pytest.fixture(scope="module")
def client(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make(toy, tmp_path_factory.mktemp("share"))


@pytest.fixture(scope="module")
def personal(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client with a head of its own."""
    yield make(toy, tmp_path_factory.mktemp("local"), "head=local")
    runtime_for.cache_clear()


def arrays(message: Message) -> Tensors:
    assert not message.has_error(), message.error.reason
    return wire.decode_own(message.content.array_records[wire.ARRAYS])


def metrics(message: Message) -> dict[str, Any]:
    assert not message.has_error(), message.error.reason
    return dict(message.content.metric_records[wire.METRICS])


def test_hello_says_who_it_is(client: Client) -> None:
    """400 rows, 80 held out, 320 in six parts: 54 or 53, a tenth of which the client keeps for tests."""
    info = wire.read_hello(client.send("query.hello", RecordDict(), 4).content, 104)
    assert (info.client_id, info.rank) == (4, 2)
    assert info.num_examples == len(client.runtime.client_rows(4)[0]) == 48
    assert info.device in list_profiles()
    assert (
        wire.read_hello(client.send("query.hello", RecordDict(), 4, device="my_board").content, 104).device
        == "my_board"
    )


def test_a_good_reply_passes_the_guard(client: Client) -> None:
    reply = client.train(3)
    verdict = UpdateGuard().inspect([reply], client.expectation(3))
    assert verdict.rejected == []
    update = verdict.accepted[0]
    assert update.num_examples == len(client.runtime.client_rows(3)[0])
    assert set(update.metrics) == set(ROUND_METRICS)
    assert dict(reply.content.config_records[wire.ECHO]) == {"server-round": 1, **asdict(client.runtime.identity)}
    assert all(not np.array_equal(update.tensors[key], value) for key, value in client.runtime.initial.items())


def test_bytes_in_the_metrics_by_hand(client: Client) -> None:
    """Rank 2 on query and value of two layers of 32: 4 x (64 + 64) float32 = 2048 bytes; head 2 x 32 + 2: 264 bytes."""
    got = metrics(client.train())
    assert (got["adapter-bytes"], got["head-bytes"], got["train-steps"]) == (2048, 264, 3)
    assert got["train-flops"] > 0
    assert 0 < got["train-loss"] < 5


def test_training_depends_on_round_client_and_tensors_alone(client: Client) -> None:
    first = arrays(client.train(1, 2))
    client.train(5, 3)
    client.send("evaluate", client.instruction(2), 2)
    again = arrays(client.train(1, 2))
    assert all(again[key].tobytes() == value.tobytes() for key, value in first.items())
    for other in (arrays(client.train(2, 2)), arrays(client.train(1, 3))):
        assert any(not np.array_equal(other[key], value) for key, value in first.items())


def test_every_round_of_every_client_has_a_seed_of_its_own(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that hold the same rows still take them in orders of their own."""
    seeds = []

    def noting(*args: Any, seed: int, **settings: Any) -> TrainResult:
        seeds.append(seed)
        return train(*args, seed=seed, **settings)

    monkeypatch.setattr("fedpeft.client.learning.train", noting)
    for client_id, server_round in ((0, 1), (1, 1), (0, 2), (0, 1)):
        assert not client.train(client_id, server_round).has_error()
    assert len(set(seeds)) == 3
    assert seeds[0] == seeds[3] == derive(0, "train", 1, 0) % 2**63


def test_what_a_codec_kept_back_is_left_when_the_rank_changes(toy: list[str], tmp_path: Path) -> None:
    """Half of each change stays behind at rank 2; at rank 1 it would fit no factor, and the head's still does."""
    sparse = make(toy, tmp_path, "codec=topk", "codec.fraction=0.5")
    assert not sparse.train(0, 1).has_error()
    smaller = sparse.train(0, 2, tensors=at_rank(sparse.runtime.initial, 1), **{"orders.rank": 1})
    assert not smaller.has_error(), smaller.error.reason
    kept = {key: value for key, value in sparse.own(0).items() if key.startswith("residual.")}
    assert {value.shape for key, value in kept.items() if "lora_A" in key} == {(1, 32)}


def test_evaluation_passes_the_guard_and_sends_no_arrays(client: Client) -> None:
    reply = client.send("evaluate", client.instruction(), 2)
    good, rejected = UpdateGuard().inspect_evaluations([reply], client.expectation(2))
    assert rejected == []
    assert set(good[2]) == EVALUATE_METRICS | GROUP_METRICS
    rows = client.runtime.client_rows(2)[1]
    assert good[2]["num-examples"] == len(rows) == sum(good[2]["group-count"])  # type: ignore[arg-type]
    assert good[2]["eval-accuracy"] == pytest.approx(sum(good[2]["group-correct"]) / len(rows))  # type: ignore[arg-type]


def test_a_stock_strategys_message_is_understood(client: Client) -> None:
    content = RecordDict(
        {"arrays": wire.encode(client.runtime.initial), "config": ConfigRecord({"server-round": 1, "lr": 0.1})}
    )
    stock, ours = client.send("train", content, 1), client.train(1)
    assert all(arrays(ours)[key].tobytes() == value.tobytes() for key, value in arrays(stock).items())


def other(tensors: Tensors, key: str, value: np.ndarray) -> Tensors:
    return {**tensors, key: value}


BIAS = "base_model.model.classifier.bias"
A_KEY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
BAD_TENSORS = {
    "shape": lambda t: other(t, BIAS, np.zeros(1, np.float32)),
    "dtype": lambda t: other(t, BIAS, t[BIAS].astype(np.float64)),
    "finite": lambda t: other(t, BIAS, np.float32([0, np.nan])),
    "keys: unexpected 'more'": lambda t: other(t, "more", np.zeros(1, np.float32)),
    "keys: unexpected 'control.more'": lambda t: other(t, "control.more", np.zeros(1, np.float32)),
    "keys: every module needs both lora_A and lora_B": lambda t: other(
        t, f"merge.{A_KEY}", np.zeros((5, 32), np.float32)
    ),
    "shape: merge.": lambda t: other(t, f"merge.{A_KEY}", np.zeros((5, 31), np.float32)),
    "keys: no tensor": lambda t: {},
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("reason", list(BAD_TENSORS))
def test_unsound_tensors_from_the_server_are_refused(client: Client, kind: str, reason: str) -> None:
    reply = client.send(kind, client.instruction(tensors=BAD_TENSORS[reason](client.runtime.initial)))
    assert reply.has_error()
    assert f"WireError: {reason}" in reply.error.reason


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("run_id", "the server speaks of run other"),
        ("config_hash", "computes by another config"),
        ("model_hash", "the base model here is another one than the server's: its sha256 begins with"),
    ],
)
def test_another_servers_instruction_is_refused(client: Client, kind: str, field: str, said: str) -> None:
    wrong = replace(client.runtime.identity, **{field: "other"})
    reason = client.send(kind, client.instruction(identity=wrong)).error.reason
    assert "WireError: identity" in reason and said in reason
    half = replace(wire.Identity(), **{field: getattr(client.runtime.identity, field)})
    assert "WireError: identity" in client.send(kind, client.instruction(identity=half)).error.reason


def test_pickled_and_oversized_instructions_are_refused(client: Client, toy: list[str], tmp_path: Path) -> None:
    record = wire.encode(client.runtime.initial)
    record[BIAS] = Array(dtype="float32", shape=(2,), stype="pickle", data=b"cos\nabort\n.")
    content = RecordDict({**client.instruction(), wire.ARRAYS: record})
    assert "WireError: stype" in client.send("train", content).error.reason
    small = make(toy, tmp_path, "guard.max_bytes=1000")
    assert "WireError: size" in small.train().error.reason
    assert (
        "WireError: round"
        in client.send(
            "train", RecordDict({"arrays": ArrayRecord(dict(wire.encode(client.runtime.initial)))})
        ).error.reason
    )


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"checkpoint-round": "x"}, "config"),
        ({"checkpoint-round": float("inf")}, "config"),
        ({"checkpoint-round": -1}, "config"),
        ({"orders.rank": 3}, "orders"),
        ({"orders.scaling": float("nan")}, "orders"),
        ({"orders.kep": "lora_B"}, "orders"),
        ({"orders.held": "lora_A"}, "held"),
    ],
)
def test_unsound_entries_from_the_server_are_refused(client: Client, entries: dict[str, Any], reason: str) -> None:
    """The method's own rank is 2, and nothing was put away before."""
    sent = {key: value for key, value in client.runtime.initial.items() if "lora_A" not in key}
    reply = client.train(tensors=sent, **entries)
    assert reply.has_error()
    assert f"WireError: {reason}" in reply.error.reason


def heads(client: Client, client_id: int) -> dict[int, bytes]:
    folder = Path(client.config["run_dir"]) / "checkpoints" / "clients" / f"client-{client_id:06d}"
    return {int(path.stem.removeprefix("round-")): path.read_bytes() for path in sorted(folder.glob("round-*"))}


def test_local_heads_stay_at_home_differ_and_persist(personal: Client) -> None:
    assert not set(arrays(personal.train(0, 1))) & HEAD
    personal.train(1, 1)
    assert metrics(personal.train(0, 2))["head-bytes"] == 0
    assert list(heads(personal, 0)) == [1, 2]
    assert heads(personal, 0)[1] != heads(personal, 1)[1]
    assert heads(personal, 0)[1] != heads(personal, 0)[2]
    first = arrays(personal.train(2, 1))
    assert any(not np.array_equal(value, arrays(personal.train(2, 2))[key]) for key, value in first.items())


def test_a_replayed_round_with_a_local_head_is_bit_identical(personal: Client) -> None:
    replies = [arrays(personal.train(3, r)) for r in (1, 2, 3)]
    kept = heads(personal, 3)
    again = [arrays(personal.train(3, r)) for r in (2, 3)]
    assert heads(personal, 3) == kept
    for first, second in zip(replies[1:], again, strict=True):
        assert all(second[key].tobytes() == value.tobytes() for key, value in first.items())


def test_evaluation_uses_the_head_of_the_round(personal: Client) -> None:
    before = metrics(personal.send("evaluate", personal.instruction(1), 4))
    personal.train(4, 1)
    after = metrics(personal.send("evaluate", personal.instruction(1), 4))
    earlier = metrics(personal.send("evaluate", personal.instruction(0), 4))
    assert after["eval-loss"] != before["eval-loss"]
    assert earlier["eval-loss"] == before["eval-loss"]
    assert list(heads(personal, 4)) == [1]


def test_the_servers_checkpoint_lets_old_heads_go(personal: Client) -> None:
    for server_round in (1, 2, 3, 4):
        personal.send("train", personal.instruction(server_round, **{"checkpoint-round": server_round - 1}), 5)
    assert list(heads(personal, 5)) == [3, 4]


def test_the_operator_chooses_where_heads_are_kept(personal: Client, tmp_path: Path) -> None:
    personal.send("train", personal.instruction(), 2, **{"state-dir": str(tmp_path)})
    assert [path.name for path in (tmp_path / "client-000002").iterdir()] == ["round-000001.safetensors"]


def test_a_refused_instruction_leaves_no_state(personal: Client, tmp_path: Path) -> None:
    bad = other(personal.runtime.initial, next(iter(personal.runtime.initial)), np.zeros(1, np.float32))
    assert personal.send("train", personal.instruction(tensors=bad), 0, **{"state-dir": str(tmp_path)}).has_error()
    assert list(tmp_path.iterdir()) == []


def test_a_client_without_test_rows_says_so(toy: list[str], tmp_path: Path) -> None:
    bare = make(toy, tmp_path, "task.client_test_fraction=0")
    assert "client 1 keeps no examples for evaluation" in bare.send("evaluate", bare.instruction(), 1).error.reason
