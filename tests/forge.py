"""Tools of a forger: bytes, arrays and replies that are not what they should be."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fake_grid import replaced
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedpeft.core import wire

KEY = "a.lora_A"
SHAPE = (3, 4)
Forgery = Callable[[Message, RecordDict], list[Message]]
"""From an instruction and the honest content to the replies that come back."""


class Bomb:
    """Runs code when it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


BOMB_FILE = Path(tempfile.gettempdir()) / f"fedpeft-bomb-{os.getpid()}"


def npy(array: np.ndarray, *, version: tuple[int, int] = (1, 0), pickled: bool = False) -> bytes:
    """Return ``numpy.save`` bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=pickled)
    return stream.getvalue()


def npy_with_header(header: str, values: bytes = b"", declared: int | None = None) -> bytes:
    """Return npy bytes, version 1, with a hand-made header."""
    text = header.encode("latin1") + b"\n"
    length = declared if declared is not None else len(text)
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text + values


def raw(data: bytes, *, dtype: str = "float32", shape: tuple[int, ...] = SHAPE, stype: str = wire.NUMPY_STYPE) -> Array:
    """Return an Array that claims what it likes."""
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def odd(array: Array, name: str, value: object) -> Array:
    """Return the Array with a field of a kind that its constructor refuses."""
    array.__dict__[name] = value
    return array


def reply(content: RecordDict, message: Message) -> Message:
    return Message(content, reply_to=message)


def with_array(make: Callable[[np.ndarray], Array | np.ndarray]) -> Forgery:
    """Exchange one array for what ``make`` makes of its honest value."""

    def messages(message: Message, content: RecordDict) -> list[Message]:
        record = content.array_records[wire.ARRAYS]
        made = make(record[KEY].numpy())
        arrays = ArrayRecord(dict(record))
        # Set afterwards: the constructor copies fields and so refuses some of what the network could carry.
        arrays[KEY] = made if isinstance(made, Array) else Array(ndarray=made)
        return [reply(replaced(content, arrays=arrays), message)]

    return messages


def with_arrays(make: Callable[[dict[str, Array]], dict[str, Array]]) -> Forgery:
    """Exchange all arrays."""
    return lambda message, content: [
        reply(replaced(content, arrays=ArrayRecord(make(dict(content.array_records[wire.ARRAYS])))), message)
    ]


def with_metrics(**changes: object) -> Forgery:
    """Set metrics, underscores for dashes; None leaves one out. What Flower's records refuse is put past them."""

    def messages(message: Message, content: RecordDict) -> list[Message]:
        metrics = dict(content.metric_records[wire.METRICS]) | {
            name.replace("_", "-"): value for name, value in changes.items()
        }
        record = MetricRecord()
        record.__dict__["_data"] |= {k: v for k, v in metrics.items() if v is not None}
        return [reply(plus(content, wire.METRICS, record), message)]

    return messages


def with_echo(**changes: object) -> Forgery:
    """Set fields of the echo; None leaves one out."""

    def messages(message: Message, content: RecordDict) -> list[Message]:
        echo = dict(content.config_records[wire.ECHO]) | {
            name.replace("server_round", wire.SERVER_ROUND): value for name, value in changes.items()
        }
        return [reply(replaced(content, echo={k: v for k, v in echo.items() if v is not None}), message)]

    return messages


def with_content(change: Callable[[RecordDict], RecordDict]) -> Forgery:
    return lambda message, content: [reply(change(content), message)]


def without(content: RecordDict, name: str) -> RecordDict:
    return RecordDict({key: record for key, record in content.items() if key != name})  # type: ignore[misc]


def plus(content: RecordDict, name: str, record: ArrayRecord | MetricRecord | ConfigRecord) -> RecordDict:
    return RecordDict({**content, name: record})  # type: ignore[dict-item]


def first(array: np.ndarray, value: float) -> np.ndarray:
    """Return the array with its first value exchanged."""
    copy = array.copy()
    copy.flat[0] = value
    return copy


def header(shape: tuple[int, ...] = SHAPE, *, descr: str = "<f4", fortran: bool = False) -> str:
    return str({"descr": descr, "fortran_order": fortran, "shape": shape})
