"""Is this device ready? Each thing that a client needs is looked at, and told in one line with what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedpeft.core.errors import FedPeftError, printable
from fedpeft.engines.deploy.reach import reach

if TYPE_CHECKING:
    from fedpeft.client.fence import Fence

State = Literal["ok", "warning", "problem"]
PACKAGES = ("fedpeft", "torch", "flwr", "transformers", "peft", "numpy")
_MEMORY_MB, _DISK_MB = 700, 500
"""Below these a client of a small model is short of memory (torch and Flower alone take about 600 MB), or of disk."""
_MB = 1_000_000
_64_BIT = ("x86_64", "amd64", "aarch64", "arm64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What looking at one thing gave.

    Attributes:
        name: the thing.
        state: ``ok``, ``warning`` (it may do) or ``problem`` (a client cannot work like this).
        text: what was found, and what to do about it.
    """

    name: str
    state: State
    text: str

    def line(self) -> str:
        """Return it for people."""
        return f"{self.state:8} {self.name:8} {self.text}"


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a client is about to be started with.

    Args:
        server: ``host:port``.
        ca: the authority's certificate; None for a connection without TLS.
        key: file of the device's private key; None where the server asks for none.
        data: file of the device's own examples.
        state_dir: folder of what the client keeps.
        text_columns: columns of ``data`` that hold texts.
        label_column: column of ``data`` that holds labels; None for data without.
        model: where the base model lies; None for what the run names.
        accelerator: where it is to compute, ``cpu`` or ``cuda``.
        profile: its device profile, a name or a file; None where there is none.
        run: overrides of the run that is to come, those of the server as the config calls them.
        fence: what its operator allows, None for everything.
    """

    server: str
    ca: Path | None
    key: Path | None
    data: Path
    state_dir: Path
    text_columns: Sequence[str] = ("text",)
    label_column: str | None = "label"
    model: str | None = None
    accelerator: str = "cpu"
    profile: str | None = None
    run: Sequence[str] = ()
    fence: Fence | None = None


def examine(device: Device) -> Iterator[Check]:
    """Look at everything and yield what was found, in the order in which a client needs it."""
    parts: tuple[Callable[[Device], Iterator[Check]], ...] = (
        _versions,
        _machine,
        _card,
        _key,
        _server,
        _data,
        _model,
        _room,
        _round,
    )
    for part in parts:
        yield from _safely(part, device)


def _safely(part: Callable[[Device], Iterator[Check]], device: Device) -> Iterator[Check]:
    name = part.__name__.strip("_")
    try:
        yield from part(device)
    except Exception as error:
        # Whatever a library says of a damaged file: the other parts are looked at all the same.
        kind = "" if isinstance(error, (FedPeftError, OSError)) else f"{type(error).__name__}: "
        yield Check(name=name, state="problem", text=printable(" ".join(f"{kind}{error}".split())))


def _versions(_: Device) -> Iterator[Check]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name == "fedpeft":
                from fedpeft import __version__

                found.append(f"fedpeft {__version__} (not installed, run from its folder)")
                continue
            yield Check(name="versions", state="problem", text=f"{name} is not installed (pip install fedpeft)")
    yield Check(name="versions", state="ok", text=", ".join(found))


def _machine(_: Device) -> Iterator[Check]:
    machine = platform.machine()
    text = f"{_cpu_name() or machine}, {os.cpu_count()} cores, {machine}, Python {platform.python_version()}"
    if machine.lower() not in _64_BIT:
        yield Check(
            name="machine", state="problem", text=f"{text}: torch has no 32-bit builds (install a 64-bit system)"
        )
        return
    yield Check(name="machine", state="ok", text=text)


def _card(device: Device) -> Iterator[Check]:
    if device.accelerator != "cpu":
        from fedpeft.client.placing import check_accelerator

        yield Check(name="card", state="ok", text=check_accelerator(device.accelerator))


def _cpu_name() -> str | None:
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return printable(board.read_text(errors="replace").strip("\0 "), 80)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _key(device: Device) -> Iterator[Check]:
    if device.key is None:
        yield Check(name="key", state="warning", text="none: only a server without keys takes this device (set --key)")
        return
    from fedpeft.engines.deploy.keys import read_device_key

    key = read_device_key(device.key)
    whose = "without a name in it" if key.name is None else f"of {key.name}, client {key.client_id}"
    yield Check(name="key", state="ok", text=f"{device.key}: P-384, private to its owner, {whose}")


def _server(device: Device) -> Iterator[Check]:
    for name, state, text in reach(device.server, device.ca):
        yield Check(name=name, state=state, text=text)


def _data(device: Device) -> Iterator[Check]:
    from fedpeft.data.readers import read_local

    if not device.data.exists():
        yield Check(name="data", state="problem", text=f"{device.data} does not exist (set --data to your examples)")
        return
    columns = [*device.text_columns, *([device.label_column] if device.label_column else [])]
    table = read_local(device.data, split="train", columns=columns, text_columns=device.text_columns)
    empty = [name for name in columns if table.column(name).null_count]
    if empty:
        yield Check(
            name="data", state="problem", text=f"{device.data} has rows without {', '.join(empty)} (fill or drop them)"
        )
        return
    yield Check(name="data", state="ok", text=f"{device.data}: {table.num_rows:,} examples of {', '.join(columns)}")


def _model(device: Device) -> Iterator[Check]:
    if device.model is None:
        yield Check(name="model", state="ok", text="the one that the run names, found or fetched when it starts")
        return
    local = Path(device.model)
    if not local.exists():
        yield Check(
            name="model",
            state="warning",
            text=f"{device.model} is no folder here: it is looked for in the cache and on the hub when a run starts",
        )
        return
    weights = [*local.glob("*.safetensors")]
    if not (local / "config.json").is_file() or not weights:
        yield Check(
            name="model",
            state="problem",
            text=f"{local} is no model folder: expected config.json and *.safetensors in it (copy the whole folder)",
        )
        return
    for file in weights:
        if (damage := _damage(file)) is not None:
            text = f"{file} is damaged: {damage} (copy the whole folder again)"
            yield Check(name="model", state="problem", text=text)
            return
    size = sum(file.stat().st_size for file in weights) / _MB
    yield Check(name="model", state="ok", text=f"{local}: {size:,.0f} MB of weights")


def _damage(file: Path) -> str | None:
    """Return what is wrong with a file of weights, by its header and its length; None for nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            return None
    except SafetensorError as error:
        return printable(str(error))


def _room(device: Device) -> Iterator[Check]:
    import psutil

    free = psutil.virtual_memory().available / _MB
    yield Check(
        name="memory",
        state="ok" if free >= _MEMORY_MB else "warning",
        text=f"{free:,.0f} MB free"
        + ("" if free >= _MEMORY_MB else f", less than {_MEMORY_MB} (end other programs, or add swap)"),
    )
    folder = next(path for path in (device.state_dir, *device.state_dir.parents) if path.exists())
    disk = shutil.disk_usage(folder).free / _MB
    if not os.access(folder, os.W_OK):
        yield Check(name="disk", state="problem", text=f"{folder} cannot be written to (set --state-dir)")
        return
    yield Check(
        name="disk",
        state="ok" if disk >= _DISK_MB else "warning",
        text=f"{disk:,.0f} MB free under {folder}"
        + ("" if disk >= _DISK_MB else f", less than {_DISK_MB} (free some, or set --state-dir)"),
    )


def _round(device: Device) -> Iterator[Check]:
    import psutil

    from fedpeft.engines.deploy.foresight import foresee

    if device.profile is None:
        text = "not predicted: no profile (fedpeft devices bench --output board.yaml, then --device board.yaml)"
        yield Check(name="round", state="warning", text=text)
        return
    found = foresee(device.profile, run=device.run, model=device.model, data=device.data, fence=device.fence)
    if found is None:
        yield Check(name="round", state="warning", text="not predicted: the run's model is not here yet")
        return
    for refusal in found.refusals:
        yield Check(name="round", state="problem", text=f"this device would refuse the run: {refusal}")
    needed, usable = found.forecast.cost.peak_memory_mb or 0.0, found.forecast.usable_mb
    free = psutil.virtual_memory().available / 2**20
    lack = f"only {free:,.0f} MiB are free" if needed > free else f"{usable:,.0f} MiB are usable here"
    advice = f": {lack} (end other programs, or have the server set devices.fit=true)"
    short = needed > min(usable, free)
    text = f"predicted {found.text()}{advice if short else ''}"
    yield Check(name="round", state="warning" if short else "ok", text=text)
