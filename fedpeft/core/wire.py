"""The message format: the only place that spells Flower record keys.

A training instruction carries one ArrayRecord ``arrays`` and one ConfigRecord ``config``; a reply carries one
ArrayRecord ``arrays``, one MetricRecord ``metrics`` and one ConfigRecord ``echo``. Keys are Flower's own, so stock
strategies and clients fit. Arrays are ``numpy.save`` bytes, whose header we parse before a single value is looked at:
``numpy.load`` never sees foreign bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedpeft.core.errors import WireError
from fedpeft.core.orders import PREFIX
from fedpeft.core.tensors import canonical
from fedpeft.core.types import ClientInfo, Tensors, TensorSpec

ARRAYS, CONFIG, METRICS, ECHO, HELLO = "arrays", "config", "metrics", "echo", "hello"
SERVER_ROUND, NUM_EXAMPLES = "server-round", "num-examples"
HELLO_QUERY = "query.hello"
RUN_CONFIG_KEY = "fedpeft-config"
NUMPY_STYPE = "numpy.ndarray"
MAX_METRIC = 1e18
MAX_PROFILE = 2**15
"""Characters of a device profile in a hello."""
FLOATS = ("float16", "float32", "float64")
LOST_CODES = frozenset({3, 4, 5, 8})
"""Flower's codes for a reply that cannot come: message or reply gone, node gone, ClientApp dead."""
ERROR_BUDGET = 100
"""Code of an error reply: the client's privacy budget is spent. Flower's own codes are small numbers."""

ConfigValue = str | int | float | bool
SpecFor = Callable[[Mapping[str, ConfigValue], Mapping[str, tuple[int, ...]]], Mapping[str, TensorSpec]]
"""Returns what a message's tensors must look like, given its config and the shapes that it claims."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be equal on both ends: the run, its config and the frozen base model (hex digests)."""

    run_id: str = "none"
    config_hash: str = "none"
    model_hash: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """A checked message from the server."""

    tensors: Tensors
    server_round: int
    identity: Identity
    config: Mapping[str, ConfigValue]


def encode(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Pack tensors in canonical order as ``numpy.save`` arrays."""
    return ArrayRecord({key: Array(ndarray=value) for key, value in canonical(tensors).items()})


def decode_own(record: ArrayRecord) -> Tensors:
    """Unpack, unchecked, a record that this process packed itself; the arrays are read-only, as those of ``decode``."""
    tensors = {key: record[key].numpy() for key in sorted(record)}
    for value in tensors.values():
        value.setflags(write=False)
    return tensors


def content_bytes(content: RecordDict) -> int:
    """Return the bytes of all records by Flower's count: arrays and headers, keys, 8 bytes a number, text in UTF-8."""
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    entries = [
        item
        for kind in (content.metric_records, content.config_records)
        for record in kind.values()
        for item in record.items()
    ]
    return arrays + sum(len(key) + _value_bytes(value) for key, value in entries)


def _value_bytes(value: object) -> int:
    # Flower's own counter raises on empty text, which a client could send.
    if isinstance(value, list):
        return sum(_value_bytes(one) for one in value)
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    return len(value) if isinstance(value, bytes) else 1 if isinstance(value, bool) else 8


def parse_array(key: str, array: Array, spec: TensorSpec) -> np.ndarray:
    """Return the array that ``array`` holds, or refuse it before anything is allocated.

    The result is a read-only view of the message's bytes.

    Raises:
        WireError: checks ``stype``, ``header``, ``dtype``, ``shape`` or ``size``.
    """
    if array.stype != NUMPY_STYPE:
        raise WireError("stype", f"{key} is serialised as {array.stype!r}, expected {NUMPY_STYPE!r}")
    shape, fortran, dtype, offset = _npy_header(key, array.data)
    if dtype != np.dtype(spec.dtype) or array.dtype != spec.dtype:
        raise WireError("dtype", f"{key} is {dtype} (declared {array.dtype}), expected {spec.dtype}")
    if shape != spec.shape or tuple(array.shape) != spec.shape:
        raise WireError("shape", f"{key} has shape {shape} (declared {tuple(array.shape)}), expected {spec.shape}")
    if fortran and len(shape) > 1:
        raise WireError("header", f"{key} is in Fortran order, expected C order")
    if len(array.data) != offset + spec.num_bytes:
        raise WireError("size", f"{key} has {len(array.data) - offset} bytes of values, expected {spec.num_bytes}")
    return np.frombuffer(array.data, dtype=dtype, offset=offset).reshape(shape)


def _npy_header(key: str, data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read shape, order, dtype and header length of ``numpy.save`` bytes without touching the values."""
    stream = io.BytesIO(data[:4096])
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=2048)
    except Exception as error:
        raise WireError("header", f"{key} has no readable npy header ({error})") from None
    if dtype.hasobject or dtype.kind not in "fiu":
        raise WireError("dtype", f"{key} has dtype {dtype}, expected numbers")
    return shape, fortran, dtype, stream.tell()


def decode(record: ArrayRecord, spec: Mapping[str, TensorSpec], *, max_bytes: int) -> Tensors:
    """Unpack a foreign record: exactly the keys, shapes and dtypes of ``spec``, finite, in canonical order.

    Raises:
        WireError: checks ``keys``, ``size``, ``finite`` and those of ``parse_array``.
    """
    if set(record) != set(spec):
        missing, extra = sorted(set(spec) - set(record)), sorted(set(record) - set(spec))
        raise WireError("keys", f"missing {missing[:3]}, unexpected {extra[:3]}")
    total = sum(len(array.data) for array in record.values())
    if total > max_bytes:
        raise WireError("size", f"{total} bytes of arrays, at most {max_bytes} are taken")
    tensors = {key: parse_array(key, record[key], spec[key]) for key in sorted(spec)}
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise WireError("finite", f"{key} holds NaN or infinity")
    return tensors


def _decode_any_float(record: ArrayRecord, spec: Mapping[str, TensorSpec], *, max_bytes: int) -> Tensors:
    """Unpack as ``decode`` does a record whose float types may differ from ``spec``, and convert."""
    claimed = {key: array.dtype for key, array in record.items()}
    sent = {
        key: TensorSpec(one.shape, claimed[key]) if claimed.get(key) in FLOATS else one for key, one in spec.items()
    }
    tensors = decode(record, sent, max_bytes=max_bytes)
    with np.errstate(over="ignore"):
        converted = {key: value.astype(spec[key].dtype, copy=False) for key, value in tensors.items()}
    if too_large := [key for key, value in converted.items() if not np.isfinite(value).all()]:
        raise WireError("finite", f"{too_large[0]} holds values beyond {spec[too_large[0]].dtype}")
    return converted


def instruction(
    arrays: ArrayRecord, server_round: int, identity: Identity, config: Mapping[str, ConfigValue] | None = None
) -> RecordDict:
    """Build the content of a ``train`` or ``evaluate`` message."""
    entries: dict[str, ConfigValue] = {**(config or {}), SERVER_ROUND: server_round}
    entries |= {f"identity.{name}": value for name, value in asdict(identity).items()}
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(entries)})  # type: ignore[arg-type]


def round_of(content: RecordDict) -> int:
    """Return the round that a message speaks of, 0 when it names none."""
    rounds = [record.get(SERVER_ROUND) for record in content.config_records.values()]
    return next((int(r) for r in rounds if isinstance(r, int)), 0)


def config_of(content: RecordDict) -> dict[str, object]:
    """Return a message's config entries, {} without any."""
    return dict(next(iter(content.config_records.values()))) if content.config_records else {}


def rank_of(content: RecordDict) -> int | None:
    """Return the LoRA rank that a message orders, None when it orders none."""
    ranks = [record.get(f"{PREFIX}rank") for record in content.config_records.values()]
    return next((int(r) for r in ranks if isinstance(r, int) and r), None)


def read_instruction(content: RecordDict, spec: Mapping[str, TensorSpec] | SpecFor, *, max_bytes: int) -> Instruction:
    """Check what the server sent, with the same rules the server applies to clients.

    Stock Flower strategies send no identity; then its fields read ``none``. Some of them (FedAdam) turn float32 into
    float64, so that without an identity any float type is converted.

    Args:
        content: the message's records.
        spec: what the tensors must look like, or what tells it from the message's config and claimed shapes.
        max_bytes: cap on the bytes of all arrays.

    Raises:
        WireError: the message has another form than ``instruction`` gives it, or bad tensors.
    """
    if len(content.array_records) != 1:
        raise WireError("records", f"expected one ArrayRecord, got {len(content.array_records)}")
    config = dict(next(iter(content.config_records.values()))) if content.config_records else {}
    server_round = config.pop(SERVER_ROUND, None)
    if type(server_round) is not int or server_round < 0:
        raise WireError("round", f"{SERVER_ROUND} must be a whole number >= 0, got {server_round!r}")
    own = {name: config.pop(f"identity.{name}", "none") for name in Identity.__dataclass_fields__}
    if not all(isinstance(value, str) for value in own.values()):
        raise WireError("identity", "identity fields must be text")
    identity = Identity(**own)  # type: ignore[arg-type]
    read = _decode_any_float if identity == Identity() else decode
    record = next(iter(content.array_records.values()))
    if not isinstance(spec, Mapping):
        spec = spec(config, {key: tuple(array.shape) for key, array in record.items()})  # type: ignore[arg-type]
    tensors = read(record, spec, max_bytes=max_bytes)
    return Instruction(tensors=tensors, server_round=server_round, identity=identity, config=config)  # type: ignore[arg-type]


def reply(instruction: Instruction, tensors: Tensors | None, metrics: Mapping[str, float | list[float]]) -> RecordDict:
    """Build the content of a reply: metrics, the echo of round and identity, and tensors unless None."""
    echo = {SERVER_ROUND: instruction.server_round, **asdict(instruction.identity)}
    content = RecordDict({METRICS: MetricRecord(dict(metrics)), ECHO: ConfigRecord(echo)})
    if tensors is not None:
        content[ARRAYS] = encode(tensors)
    return content


def check_echo(content: RecordDict, server_round: int, identity: Identity) -> None:
    """Refuse a reply that answers another round, run, config or base model.

    Raises:
        WireError: checks ``round`` and ``identity``.
    """
    if set(content.config_records) != {ECHO}:
        raise WireError("records", f"expected one ConfigRecord {ECHO!r}, got {sorted(content.config_records)}")
    echo = dict(content.config_records[ECHO])
    answered = echo.pop(SERVER_ROUND, None)
    if type(answered) is not int or answered != server_round:
        raise WireError("round", f"answers round {answered!r}, not {server_round}")
    if echo != asdict(identity):
        wrong = sorted(name for name, value in asdict(identity).items() if echo.get(name) != value)
        raise WireError("identity", f"{', '.join(wrong) or 'extra fields'} differ from the server's")


def hello_reply(*, client_id: int, num_examples: int, device: str, rank: int | None, profile: str = "") -> RecordDict:
    """Build a client's answer to ``query.hello``; rank 0 stands for none, as does an empty profile."""
    entries: dict[str, ConfigValue] = {
        "client-id": client_id,
        NUM_EXAMPLES: num_examples,
        "device": device,
        "rank": rank or 0,
    }
    entries |= {"profile": profile} if profile else {}
    return RecordDict({HELLO: ConfigRecord(entries)})  # type: ignore[arg-type]


def read_hello(content: RecordDict, node_id: int) -> ClientInfo:
    """Return who a node says it is.

    Raises:
        WireError: check ``hello``: a field is missing, of another type or out of range.
    """
    entries: dict[str, Any] = dict(content.config_records.get(HELLO, {}))
    kinds = {"client-id": int, NUM_EXAMPLES: int, "device": str, "rank": int}
    for name, kind in kinds.items():
        if type(entries.get(name)) is not kind:
            raise WireError("hello", f"{name} must be {kind.__name__}, got {entries.get(name)!r}")
    client_id, num_examples, device, rank = (entries[name] for name in kinds)
    if not (0 <= client_id < 2**31 and 1 <= num_examples < 2**40 and 0 <= rank <= 4096 and 0 < len(device) <= 64):
        raise WireError(
            "hello", f"out of range: client {client_id}, {num_examples} examples, rank {rank}, device {device[:64]!r}"
        )
    profile = entries.get("profile", "")
    if not (isinstance(profile, str) and len(profile) <= MAX_PROFILE):
        raise WireError("hello", f"profile must be a text of at most {MAX_PROFILE} characters")
    return ClientInfo(
        client_id=client_id,
        node_id=node_id,
        num_examples=num_examples,
        device=device,
        rank=rank or None,
        profile=profile,
    )
