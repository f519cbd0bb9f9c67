"""Hostile replies, by name: what one bad client of six may send, and the check that must name it.

Each case turns the client's instruction and its honest content into the messages that come back. A check of None means
that there is nothing to refuse: the reply counts, or there is none.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import forge
import numpy as np
from fake_grid import replaced
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict
from forge import (
    BOMB_FILE,
    Bomb,
    Forgery,
    first,
    header,
    npy,
    npy_with_header,
    odd,
    plus,
    raw,
    reply,
    with_array,
    with_arrays,
    with_content,
    with_echo,
    with_metrics,
    without,
)

from fedpeft.core import wire

MAX_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of reply.

    Attributes:
        name: what is wrong.
        check: the check that must refuse it, None where the reply is honest and counts.
        make: from the instruction and the honest content to the replies.
        counts: whether the client's update is part of the mean.
        named: whether the guard names the client; error replies and silence carry nothing to judge.
    """

    name: str
    check: str | None
    make: Forgery
    counts: bool = False
    named: bool = True


TERA = (1024, 1024, 1024, 1024)
VALUES = [
    Case("NaN", "finite", with_array(lambda x: first(x, np.nan))),
    Case("infinity", "finite", with_array(lambda x: first(x, np.inf))),
    Case("negative infinity", "finite", with_array(lambda x: first(x, -np.inf))),
    Case("1e30", "norm", with_array(lambda x: first(x, 1e30))),
    Case("the largest float32", "norm", with_array(lambda x: np.full_like(x, np.finfo(np.float32).max))),
    Case("far over the round's median", "norm", with_array(lambda x: x + 40)),
    Case(
        "no change at all",
        None,
        lambda m, c: [reply(replaced(c, arrays=m.content.array_records[wire.ARRAYS]), m)],
        counts=True,
    ),
    Case(
        "all zeros",
        None,
        with_arrays(lambda arrays: {k: Array(ndarray=np.zeros_like(a.numpy())) for k, a in arrays.items()}),
        counts=True,
    ),
]
FORMS = [
    Case("wrong shape", "shape", with_array(lambda x: np.zeros(5, np.float32))),
    Case("transposed", "shape", with_array(lambda x: np.ascontiguousarray(x.T))),
    Case("one more dimension", "shape", with_array(lambda x: x[None])),
    Case("broadcastable (1,)", "shape", with_array(lambda x: np.zeros(1, np.float32))),
    Case("broadcastable (1, n)", "shape", with_array(lambda x: x[:1])),
    Case("scalar", "shape", with_array(lambda x: np.array(0.0, np.float32))),
    Case("empty array", "shape", with_array(lambda x: np.zeros((0, 4), np.float32))),
    Case("flattened", "shape", with_array(np.ravel)),
    Case("declared shape lies", "shape", with_array(lambda x: raw(npy(x), shape=(4, 3)))),
    Case("values lie about the declared shape", "shape", with_array(lambda x: raw(npy(x.T)))),
    Case("float64", "dtype", with_array(lambda x: x.astype(np.float64))),
    Case("float16", "dtype", with_array(lambda x: x.astype(np.float16))),
    Case("int64", "dtype", with_array(lambda x: x.astype(np.int64))),
    Case("bool", "dtype", with_array(lambda x: x > 0)),
    Case("complex", "dtype", with_array(lambda x: x.astype(np.complex64))),
    Case("text", "dtype", with_array(lambda x: x.astype(str))),
    Case("big-endian", "dtype", with_array(lambda x: x.astype(">f4"))),
    Case("big-endian, declared float32", "dtype", with_array(lambda x: raw(npy(x.astype(">f4"))))),
    Case(
        "structured",
        "dtype",
        with_array(lambda x: raw(npy_with_header(header(descr="[('x', '<f4')]").replace('"', ""), bytes(48)))),
    ),
    Case("float64, declared float32", "dtype", with_array(lambda x: raw(npy(x.astype(np.float64))))),
    Case("float32, declared float64", "dtype", with_array(lambda x: raw(npy(x), dtype="float64"))),
    Case("extra key", "keys", with_arrays(lambda arrays: arrays | {"z": Array(ndarray=np.zeros(2, np.float32))})),
    Case("missing key", "keys", with_arrays(lambda arrays: {k: a for k, a in arrays.items() if k != forge.KEY})),
    Case(
        "renamed key", "keys", with_arrays(lambda arrays: {k.replace("lora_A", "lora_X"): a for k, a in arrays.items()})
    ),
    Case("permuted keys", None, with_arrays(lambda arrays: dict(reversed(arrays.items()))), counts=True),
    Case("no arrays", "keys", with_arrays(lambda arrays: {})),
    Case("more bytes than are taken", "size", with_array(lambda x: np.zeros(MAX_BYTES // 4 + 1, np.float32))),
]
BYTES = [
    Case("stype pickle", "stype", with_array(lambda x: raw(npy(x), stype="pickle"))),
    Case("stype empty", "stype", with_array(lambda x: raw(npy(x), stype=""))),
    Case(
        "npy of pickled objects",
        "dtype",
        with_array(lambda x: raw(npy(np.array([[Bomb(BOMB_FILE)] * 4] * 3, dtype=object), pickled=True))),
    ),
    Case("bare pickle", "header", with_array(lambda x: raw(pickle.dumps(Bomb(BOMB_FILE))))),
    Case("header claims terabytes", "shape", with_array(lambda x: raw(npy_with_header(header(TERA))))),
    Case(
        "header and declaration claim terabytes",
        "shape",
        with_array(lambda x: raw(npy_with_header(header(TERA)), shape=TERA)),
    ),
    Case(
        "negative shape",
        "shape",
        with_array(lambda x: raw(npy_with_header(header((-3, -4)), x.tobytes()), shape=(-3, -4))),
    ),
    Case("values cut off", "size", with_array(lambda x: raw(npy(x)[:-1]))),
    Case("header only", "size", with_array(lambda x: raw(npy(x)[:-48]))),
    Case("trailing bytes", "size", with_array(lambda x: raw(npy(x) + b"x"))),
    Case("header cut off", "header", with_array(lambda x: raw(npy(x)[:40]))),
    Case("empty bytes", "header", with_array(lambda x: raw(b""))),
    Case("not npy", "header", with_array(lambda x: raw(b"PK\x03\x04" + bytes(200)))),
    Case("npy version 2", "header", with_array(lambda x: raw(npy(x, version=(2, 0))))),
    Case("npy version 9", "header", with_array(lambda x: raw(b"\x93NUMPY\x09\x00" + npy(x)[8:]))),
    Case("Fortran order", "header", with_array(lambda x: raw(npy(np.asfortranarray(x))))),
    Case("header of nested brackets", "header", with_array(lambda x: raw(npy_with_header("(" * 1500, x.tobytes())))),
    Case(
        "header is code", "header", with_array(lambda x: raw(npy_with_header("__import__('os').getpid()", x.tobytes())))
    ),
    Case("header too long", "header", with_array(lambda x: raw(npy_with_header(header() + " " * 60_000, x.tobytes())))),
    Case(
        "header with one key too many",
        "header",
        with_array(lambda x: raw(npy_with_header(header()[:-1] + ", 'x': 1}", x.tobytes()))),
    ),
    Case("shape of a kind that no array has", "malformed", with_array(lambda x: odd(raw(npy(x)), "shape", None))),
    Case("text for bytes", "malformed", with_array(lambda x: odd(raw(npy(x)), "data", "text"))),
]
WEIGHTS = [
    Case(f"weight {value!r:.15}", "weight", with_metrics(num_examples=value))
    for value in (10**12, 10**400, -49, 0, float("nan"), float("inf"), float("-inf"), 13.0, True, "13", [13], None)
]
METRICS = [
    Case("extra metric", "metrics", with_metrics(backdoor=1.0)),
    Case("metric of an evaluation", "metrics", with_metrics(eval_accuracy=1.0)),
    Case("NaN metric", "metrics", with_metrics(train_loss=float("nan"))),
    Case("infinite metric", "metrics", with_metrics(train_loss=float("inf"))),
    Case("metric too large", "metrics", with_metrics(train_loss=1e30)),
    Case("whole number beyond floats", "metrics", with_metrics(train_steps=10**400)),
    Case("text for a number", "metrics", with_metrics(train_loss="0.5")),
    Case("bool for a number", "metrics", with_metrics(train_loss=True)),
    Case("list for a number", "metrics", with_metrics(train_loss=[1.0, 2.0])),
    Case("list bomb", "metrics", with_metrics(train_loss=[0.5] * 200_000)),
    Case("empty metric record", "weight", with_content(lambda c: plus(c, wire.METRICS, MetricRecord()))),
    Case("metric's name with control characters", "metrics", with_metrics(**{"\x1b[2J\n": 1.0})),
]
ECHOES = [
    Case("another round", "round", with_echo(server_round=99)),
    Case("round as text", "round", with_echo(server_round="1")),
    Case("round as float", "round", with_echo(server_round=1.0)),
    Case("round as bool", "round", with_echo(server_round=True)),
    Case("no round", "round", with_echo(server_round=None)),
    Case("another run", "identity", with_echo(run_id="other")),
    Case("another config", "identity", with_echo(config_hash="other")),
    Case("another base model", "identity", with_echo(model_hash="other")),
    Case("no base model", "identity", with_echo(model_hash=None)),
    Case("empty text in the echo", "identity", with_echo(run_id="", config_hash="", model_hash="")),
    Case("a megabyte in the echo", "identity", with_echo(run_id="x" * 2**20)),
    Case("a megabyte for the round", "round", with_echo(server_round="\n" * 2**20)),
    Case("half a character in the echo", "identity", with_echo(run_id="\ud800")),
    Case("extra field in the echo", "identity", with_echo(more=1)),
    Case("bytes and lists in the echo", "identity", with_echo(run_id=b"x", config_hash=[1, 2], model_hash=[])),
    Case("no echo", "records", with_content(lambda c: without(c, wire.ECHO))),
    Case(
        "echo under another name",
        "records",
        with_content(lambda c: plus(without(c, wire.ECHO), "x", c.config_records[wire.ECHO])),
    ),
]
CONTENTS = [
    Case("empty content", "records", with_content(lambda c: RecordDict())),
    Case("no array record", "records", with_content(lambda c: without(c, wire.ARRAYS))),
    Case("no metric record", "records", with_content(lambda c: without(c, wire.METRICS))),
    Case("two array records", "records", with_content(lambda c: plus(c, "more", c.array_records[wire.ARRAYS]))),
    Case("two metric records", "records", with_content(lambda c: plus(c, "more", c.metric_records[wire.METRICS]))),
    Case("two config records", "records", with_content(lambda c: plus(c, "more", ConfigRecord({"a": ""})))),
    Case("its instruction sent back", "records", lambda m, c: [reply(m.content, m)]),
    Case("two replies", "duplicate", lambda m, c: [reply(c, m), reply(c, m)]),
    Case("a good reply and a bad one", "duplicate", lambda m, c: [reply(c, m), reply(RecordDict(), m)]),
    Case("error reply", None, lambda m, c: [Message(Error(2, "it broke"), reply_to=m)], named=False),
    Case("silence", None, lambda m, c: [], named=False),
    Case("an honest reply", None, lambda m, c: [reply(c, m)], counts=True),
]
CASES = [*VALUES, *FORMS, *BYTES, *WEIGHTS, *METRICS, *ECHOES, *CONTENTS]
