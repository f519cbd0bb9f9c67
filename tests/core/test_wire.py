"""The message format: what goes in comes out, foreign bytes are refused unread, bytes are counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from forge import BOMB_FILE, Bomb, header, npy, npy_with_header, raw

from fedpeft.core import wire
from fedpeft.core.errors import WireError
from fedpeft.core.tensors import specs
from fedpeft.core.types import ClientInfo, TensorSpec

X = np.arange(12, dtype=np.float32).reshape(3, 4)
SPEC = TensorSpec((3, 4), "float32")


def refused(check: str, array: Array, spec: TensorSpec = SPEC) -> None:
    with pytest.raises(WireError) as caught:
        wire.parse_array("x", array, spec)
    assert caught.value.check == check
    assert "x " in caught.value.reason


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors_survive_the_wire_bit_for_bit(dtype: str) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.normal(size=(2, 3)).T.astype(dtype),
        "a": np.array(1.5, dtype),
        "c": np.zeros((0, 2), dtype),
        "A": np.float32([-0.0, 1e-45]),
    }
    spec = specs(tensors)
    for record in (wire.encode(tensors), ArrayRecord(dict(reversed(wire.encode(tensors).items())))):
        back = wire.decode(record, spec, max_bytes=10**6)
        assert list(back) == ["A", "a", "b", "c"]
        for key, value in tensors.items():
            assert back[key].dtype == value.dtype
            assert back[key].shape == value.shape
            assert back[key].tobytes() == np.ascontiguousarray(value).tobytes()
    own = wire.decode_own(wire.encode(tensors))
    assert list(own) == ["A", "a", "b", "c"]


def test_encoding_is_canonical() -> None:
    one = wire.encode({"b": X, "a": X})
    assert list(one) == ["a", "b"]
    assert one.object_id == wire.encode({"a": X, "b": X}).object_id


def test_decoded_values_are_views_that_cannot_be_written() -> None:
    back = wire.decode(wire.encode({"x": X}), {"x": SPEC}, max_bytes=10**6)["x"]
    with pytest.raises(ValueError, match="read-only"):
        back[0, 0] = 1


def test_a_sound_array_is_taken() -> None:
    assert np.array_equal(wire.parse_array("x", raw(npy(X)), SPEC), X)
    column = np.asfortranarray(np.ones(4, np.float32))
    assert np.array_equal(wire.parse_array("x", Array(ndarray=column), TensorSpec((4,), "float32")), column)
    # One dimension has one order, whatever the header calls it.
    flagged = raw(npy_with_header(header((4,), fortran=True), column.tobytes()), shape=(4,))
    assert np.array_equal(wire.parse_array("x", flagged, TensorSpec((4,), "float32")), column)


@pytest.mark.parametrize(
    ("check", "data"),
    [
        ("header", b""),
        ("header", npy(X)[:9]),
        ("header", npy(X)[:60]),
        ("header", npy(X, version=(2, 0))),
        ("header", npy(X, version=(3, 0))),
        ("header", npy(np.asfortranarray(X))),
        ("header", npy_with_header(header() + " " * 60_000, X.tobytes())),
        ("header", npy_with_header("{'descr': '<f4'}", X.tobytes())),
        ("header", npy_with_header("__import__('os').abort()", X.tobytes())),
        ("dtype", npy(X.astype(">f4"))),
        ("dtype", npy(X.astype(np.int32))),
        ("dtype", npy(X.astype(np.complex64))),
        ("dtype", npy(X.astype(str))),
        ("dtype", npy(np.array([[Bomb(BOMB_FILE)]], dtype=object), pickled=True)),
        ("shape", npy_with_header(header((931_322, 931_322)), X.tobytes())),
        ("shape", npy(X.reshape(4, 3))),
        ("size", npy(X)[:-1]),
        ("size", npy(X) + b"\0"),
    ],
)
def test_unsound_bytes_are_refused(check: str, data: bytes) -> None:
    refused(check, raw(data))
    assert not BOMB_FILE.exists()


def test_a_claim_of_three_tebibytes_is_refused_without_allocating() -> None:
    """906 x 1024^3 float32 are 3.5 TiB. Even where that shape is expected, the missing bytes are seen first."""
    shape = (906, 1024, 1024, 1024)
    data = npy_with_header(header(shape), bytes(64))
    refused("shape", raw(data, shape=shape))
    refused("size", raw(data, shape=shape), TensorSpec(shape, "float32"))


def test_declarations_must_agree_with_the_bytes() -> None:
    refused("dtype", raw(npy(X), dtype="float64"))
    refused("shape", raw(npy(X), shape=(4, 3)))
    refused("shape", raw(npy(X), shape=()))
    refused("stype", raw(npy(X), stype="torch.tensor"))
    refused("dtype", raw(npy(X)), TensorSpec((3, 4), "float64"))
    refused("dtype", raw(npy(X.astype(bool)), dtype="bool"), TensorSpec((3, 4), "bool"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(value: float) -> None:
    bad = X.copy()
    bad[2, 3] = value
    with pytest.raises(WireError, match="finite: y"):
        wire.decode(wire.encode({"x": X, "y": bad}), {"x": SPEC, "y": SPEC}, max_bytes=10**6)


def test_keys_and_sizes_of_a_record() -> None:
    record = wire.encode({"x": X})
    with pytest.raises(WireError, match=r"keys: missing \['y'\], unexpected \['x'\]"):
        wire.decode(record, {"y": SPEC}, max_bytes=10**6)
    size = len(record["x"].data)
    assert wire.decode(record, {"x": SPEC}, max_bytes=size)
    with pytest.raises(WireError, match=f"size: {size} bytes"):
        wire.decode(record, {"x": SPEC}, max_bytes=size - 1)


def test_bytes_by_hand() -> None:
    """float32 (3, 4): 128 bytes of npy header + 48, key "x" 1.

    Metrics: "loss" 4 + 8, "n" 1 + 8, "list" 4 + 3 x 8. Config: "on" 2 + 1, "i" 1 + 8, "t" 1 + 5, "b" 1 + 2.
    """
    content = RecordDict({
        "arrays": ArrayRecord({"x": Array(ndarray=X)}),
        "metrics": MetricRecord({"loss": 0.5, "n": 3, "list": [1.0, 2.0, 3.0]}),
        "config": ConfigRecord({"on": True, "i": 7, "t": "hello", "b": b"xy"}),
    })  # fmt: skip
    expected = (128 + 48 + 1) + (12 + 9 + 28) + (3 + 9 + 6 + 3)
    assert wire.content_bytes(content) == expected
    assert sum(record.count_bytes() for record in content.values()) == expected


def test_bytes_where_flowers_own_counter_fails() -> None:
    content = RecordDict(
        {"config": ConfigRecord({"empty": "", "list": [], "texts": ["ab", ""], "umlaut": "\u00e4", "half": "\ud800"})}
    )
    with pytest.raises(ValueError, match="Config values"):
        ConfigRecord({"empty": ""}).count_bytes()
    assert wire.content_bytes(content) == len("emptylisttextsumlauthalf") + 0 + 0 + 2 + 2 + 3
    assert wire.content_bytes(RecordDict()) == 0


def instruction(**config: Any) -> RecordDict:
    return wire.instruction(
        wire.encode({"x": X}), 3, wire.Identity(run_id="r", config_hash="c", model_hash="m"), config
    )


def test_an_instruction_is_read_as_it_was_written() -> None:
    read = wire.read_instruction(instruction(rank=4, server_wish="a"), {"x": SPEC}, max_bytes=10**6)
    assert (read.server_round, read.identity) == (3, wire.Identity(run_id="r", config_hash="c", model_hash="m"))
    assert dict(read.config) == {"rank": 4, "server_wish": "a"}
    assert np.array_equal(read.tensors["x"], X)


def test_an_instruction_of_a_stock_strategy_has_no_identity() -> None:
    content = RecordDict({"arrays": wire.encode({"x": X}), "config": ConfigRecord({"server-round": 1, "lr": 0.1})})
    read = wire.read_instruction(content, {"x": SPEC}, max_bytes=10**6)
    assert read.identity == wire.Identity()
    assert dict(read.config) == {"lr": 0.1}


def test_a_stock_strategy_may_send_any_float_type() -> None:
    """FedAdam turns float32 into float64 in its first round. What does not fit is refused, and all but floats."""

    def read(value: np.ndarray, **identity: str) -> wire.Instruction:
        config = ConfigRecord({"server-round": 2, **identity})
        return wire.read_instruction(
            RecordDict({"arrays": ArrayRecord({"x": Array(ndarray=value)}), "config": config}),
            {"x": SPEC},
            max_bytes=10**6,
        )

    for dtype in ("float16", "float32", "float64"):
        got = read((X / 3).astype(dtype)).tensors["x"]
        assert got.dtype == np.float32
        assert np.array_equal(got, (X / 3).astype(dtype).astype(np.float32))
    for check, value in (
        ("finite", np.full((3, 4), 1e300)),
        ("finite", np.full((3, 4), np.nan)),
        ("shape", np.zeros((4, 3))),
        ("dtype", X.astype(int)),
    ):
        with pytest.raises(WireError) as caught:
            read(value)
        assert caught.value.check == check
    with pytest.raises(WireError, match="dtype"):
        read(X.astype(np.float64), **{"identity.run_id": "r"})


@pytest.mark.parametrize(
    ("check", "config"),
    [
        ("round", {"server-round": -1}),
        ("round", {"server-round": 1.0}),
        ("round", {"server-round": True}),
        ("round", {}),
        ("identity", {"server-round": 1, "identity.run_id": 5}),
    ],
)
def test_unsound_instructions_are_refused(check: str, config: dict[str, Any]) -> None:
    content = RecordDict({"arrays": wire.encode({"x": X}), "config": ConfigRecord(config)})
    with pytest.raises(WireError) as caught:
        wire.read_instruction(content, {"x": SPEC}, max_bytes=10**6)
    assert caught.value.check == check


def test_an_instruction_has_one_array_record() -> None:
    for content in (
        RecordDict({"config": ConfigRecord({"server-round": 1})}),
        RecordDict({**instruction(), "more": wire.encode({"x": X})}),
    ):
        with pytest.raises(WireError, match="records"):
            wire.read_instruction(content, {"x": SPEC}, max_bytes=10**6)


def test_a_reply_echoes_what_it_answers() -> None:
    read = wire.read_instruction(instruction(), {"x": SPEC}, max_bytes=10**6)
    content = wire.reply(read, {"x": X}, {"num-examples": 3})
    wire.check_echo(content, 3, read.identity)
    assert set(content) == {"arrays", "metrics", "echo"}
    assert set(wire.reply(read, None, {"num-examples": 3})) == {"metrics", "echo"}
    with pytest.raises(WireError, match="round: answers round 3, not 4"):
        wire.check_echo(content, 4, read.identity)
    with pytest.raises(WireError, match="identity: run_id differ"):
        wire.check_echo(content, 3, wire.Identity(run_id="other", config_hash="c", model_hash="m"))


def test_hello_goes_there_and_back() -> None:
    content = wire.hello_reply(client_id=3, num_examples=7, device="phone", rank=8)
    assert wire.read_hello(content, 99) == ClientInfo(client_id=3, node_id=99, num_examples=7, device="phone", rank=8)
    assert wire.read_hello(wire.hello_reply(client_id=0, num_examples=1, device="d" * 64, rank=None), 1).rank is None


@pytest.mark.parametrize(
    "change",
    [
        {"client-id": -1},
        {"client-id": 2**31},
        {"client-id": True},
        {"client-id": 1.0},
        {"client-id": "1"},
        {"num-examples": 0},
        {"num-examples": 2**40},
        {"num-examples": 5.0},
        {"num-examples": [5]},
        {"rank": -1},
        {"rank": 4097},
        {"rank": 2.0},
        {"device": ""},
        {"device": "d" * 65},
        {"device": 3},
        {"device": b"x"},
    ],
    ids=str,
)
def test_hello_out_of_range_is_refused(change: dict[str, Any]) -> None:
    entries = dict(wire.hello_reply(client_id=1, num_examples=5, device="d", rank=2).config_records["hello"])
    with pytest.raises(WireError, match="hello"):
        wire.read_hello(RecordDict({"hello": ConfigRecord(entries | change)}), 1)


@pytest.mark.parametrize("name", ["client-id", "num-examples", "rank", "device"])
def test_hello_must_be_whole(name: str) -> None:
    entries = dict(wire.hello_reply(client_id=1, num_examples=5, device="d", rank=2).config_records["hello"])
    del entries[name]
    with pytest.raises(WireError, match=name):
        wire.read_hello(RecordDict({"hello": ConfigRecord(entries)}), 1)
    with pytest.raises(WireError, match="hello"):
        wire.read_hello(RecordDict(), 1)


def test_only_wire_spells_record_keys() -> None:
    """Other modules of the message path import the names; a second spelling would drift."""
    package = Path(wire.__file__).parent.parent
    spelled = ['"arrays"', '"echo"', '"server-round"']
    files = [
        f
        for part in ("core", "strategies", "server", "client", "engines")
        for f in (package / part).glob("*.py")
        if f.name != "wire.py"
    ]
    found = [f"{f.name}: {key}" for f in files for key in spelled if key in f.read_text()]
    assert found == []
