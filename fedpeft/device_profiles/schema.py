"""What a device profile holds, each number with its unit and its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.fields import (
    Choice,
    Group,
    Number,
    Table,
    Text,
    Words,
    build,
    dump,
    find_problems,
    iter_numbers,
    iter_paths,
    spec,
)
from fedpeft.device_profiles.presence_rules import availability_problems

_PROBABILITY = Number(unit="probability", high=1.0, closed=True)
_FRACTION = Number(unit="fraction", high=1.0)
_SPREAD = Number(unit="std / mean", high=10.0, closed=True)
LINKS = ("wifi", "4g", "5g", "ethernet")
"""Kinds of the last link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gflops:
    """Rates of matrix products by dtype: 1e9 floating-point operations a second, integer ones for int8.

    None is not known.
    """

    fp32: float | None = field(default=None, metadata=spec(Number(unit="GFLOP/s")))
    fp16: float | None = field(default=None, metadata=spec(Number(unit="GFLOP/s")))
    bf16: float | None = field(default=None, metadata=spec(Number(unit="GFLOP/s")))
    int8: float | None = field(default=None, metadata=spec(Number(unit="GOP/s")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """After ``after_s`` seconds of load the device runs at ``factor`` of its speed, until the load ends."""

    after_s: float = field(metadata=spec(Number(unit="s", closed=True)))
    factor: float = field(metadata=spec(_FRACTION))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """How fast it calculates.

    Attributes:
        peak_gflops: theoretical rates.
        achievable_gflops: what a large matrix product reaches; ``fp32`` must be known.
        train_efficiency: FLOP/s of a training step's matrix products as a fraction of the achievable rate.
        step_overhead_ms: framework time of each step, whatever its size.
        threads: CPU threads that training may use; for people, the rates count them already.
        throttle: slowing down under lasting load, None for none.
        jitter_cv: coefficient of variation of the compute time between rounds.
    """

    peak_gflops: Gflops | None = field(default=None, metadata=spec(Group(Gflops)))
    achievable_gflops: Gflops = field(metadata=spec(Group(Gflops)))
    train_efficiency: float = field(metadata=spec(_FRACTION))
    step_overhead_ms: float = field(metadata=spec(Number(unit="ms", closed=True)))
    threads: int = field(metadata=spec(Number(unit="threads", whole=True)))
    throttle: Throttle | None = field(default=None, metadata=spec(Group(Throttle)))
    jitter_cv: float = field(metadata=spec(_SPREAD))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much it can hold.

    Attributes:
        total_mb: memory of the device in MiB, shared with its graphics unit where there is one.
        usable_fraction: share of it that training may take before the system intervenes.
        bandwidth_gb_per_s: sustained memory bandwidth, 1e9 bytes a second.
        allocator_overhead: resident size over the bytes asked for, at least 1.
        swap: whether it can swap.
    """

    total_mb: int = field(metadata=spec(Number(unit="MiB", whole=True)))
    usable_fraction: float = field(metadata=spec(_FRACTION))
    bandwidth_gb_per_s: float = field(metadata=spec(Number(unit="GB/s")))
    allocator_overhead: float = field(metadata=spec(Number(unit="ratio", low=1.0, closed=True)))
    swap: bool = field(metadata=spec(Choice((True, False))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How it reaches the server.

    Attributes:
        type: the kind of its last link.
        down_mbps, up_mbps: link rates towards and from the device, 1e6 bits a second.
        rtt_ms: round-trip time.
        jitter_cv: coefficient of variation of the rates between transfers.
        loss: share of what is sent that gets lost on the way and is sent again.
        payload_efficiency: share of the link rate that carries payload.
    """

    type: str = field(metadata=spec(Choice(LINKS)))
    down_mbps: float = field(metadata=spec(Number(unit="Mbit/s")))
    up_mbps: float = field(metadata=spec(Number(unit="Mbit/s")))
    rtt_ms: float = field(metadata=spec(Number(unit="ms", closed=True)))
    jitter_cv: float = field(metadata=spec(_SPREAD))
    loss: float = field(metadata=spec(Number(unit="fraction", high=1.0, closed=True, below=True)))
    payload_efficiency: float = field(metadata=spec(_FRACTION))


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What it draws.

    Attributes:
        idle_w: power at rest, and while it waits for the network.
        load_w: power while it trains.
        tx_nj_per_bit: energy of the radio for each bit on the link, None where not known.
        battery_wh: what its battery holds, None for mains or not known.
    """

    idle_w: float = field(metadata=spec(Number(unit="W", closed=True)))
    load_w: float = field(metadata=spec(Number(unit="W")))
    tx_nj_per_bit: float | None = field(default=None, metadata=spec(Number(unit="nJ/bit")))
    battery_wh: float | None = field(default=None, metadata=spec(Number(unit="Wh")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """When it can take part; ``availability.Presence`` says who is there at a given time.

    Attributes:
        model: ``always``; ``bernoulli``: with probability p; ``diurnal``: p + amplitude * sin(2 pi (t - phase) /
            period); ``trace``: in the intervals of a file.
        p: mean probability of being available.
        amplitude: of the daily wave, at most p and 1 - p.
        period_h: of the daily wave; a trace repeats after so long (None: where its last interval ends).
        phase_h: time since the run began at which the daily wave passes p on its way up, 0 unless given.
        mean_session_min: how long it stays available, on average over all sessions.
        trace: path of the file of intervals, see ``traces.read_trace``.
        dropout_per_round: probability of leaving in the middle of a round, whatever the model.
        requires: conditions that must hold on the device; p counts the times when they do.
    """

    model: str = field(metadata=spec(Choice(("always", "bernoulli", "diurnal", "trace"))))
    p: float | None = field(default=None, metadata=spec(_FRACTION))
    amplitude: float | None = field(default=None, metadata=spec(_PROBABILITY))
    period_h: float | None = field(default=None, metadata=spec(Number(unit="h")))
    phase_h: float | None = field(default=None, metadata=spec(Number(unit="h", closed=True)))
    mean_session_min: float | None = field(default=None, metadata=spec(Number(unit="min")))
    trace: str | None = field(default=None, metadata=spec(Text()))
    dropout_per_round: float = field(metadata=spec(_PROBABILITY))
    requires: tuple[str, ...] = field(metadata=spec(Words(("charging", "idle", "wifi"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a number comes from.

    Attributes:
        kind: ``measured`` by us, ``published`` by others, ``derived`` from such figures, or ``assumed``.
        source: what was read or done, in a few words (``from`` in YAML).
        url: where to read it.
    """

    kind: str = field(metadata=spec(Choice(("measured", "published", "derived", "assumed"))))
    source: str = field(metadata=spec(Text(), key="from"))
    url: str | None = field(default=None, metadata=spec(Text()))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What one device can do.

    ``predict`` reads compute, memory, network and energy, ``availability`` says when it is there; the page
    docs/devices-simulated.md has a whole profile to start from.

    Attributes:
        schema_version: version of this layout.
        name: the profile's id.
        device_class: ``class`` in YAML.
        population_weight: its share among the devices of the world, for sampling fleets.
        provenance: source of each number by dotted path; an entry for ``network`` covers ``network.rtt_ms``
            unless a longer path does.

    Example:
        >>> from fedpeft.device_profiles.presets import load_profile
        >>> load_profile("rpi5_8gb").compute.achievable_gflops.fp32
        70.0
    """

    schema_version: int = field(metadata=spec(Choice((1,))))
    name: str = field(metadata=spec(Text()))
    device_class: str = field(metadata=spec(Choice(("sbc", "jetson", "phone", "laptop", "edge_server")), key="class"))
    compute: Compute = field(metadata=spec(Group(Compute)))
    memory: Memory = field(metadata=spec(Group(Memory)))
    network: Network = field(metadata=spec(Group(Network)))
    energy: Energy = field(metadata=spec(Group(Energy)))
    availability: Availability = field(metadata=spec(Group(Availability)))
    population_weight: float = field(metadata=spec(_FRACTION))
    provenance: Mapping[str, Provenance] = field(metadata=spec(Table(Provenance)))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, origin: str = "") -> DeviceProfile:
        """Read a profile from plain data, e.g. parsed YAML.

        Args:
            mapping: keys as in the attributes, ``class`` for ``device_class``.
            origin: where it was read, for messages; the profile's own name by default.

        Raises:
            ConfigError: with one line for every problem found.
        """
        problems = find_problems(cls, mapping)
        if isinstance(mapping, Mapping):
            problems += _unsourced(mapping) + _contradictions(mapping)
            origin = origin or f"device profile {mapping.get('name', '(no name)')}"
        if problems:
            raise ConfigError([f"{origin or 'device profile'}: {problem}" for problem in problems])
        profile: DeviceProfile = build(cls, mapping)
        return profile

    def to_mapping(self) -> dict[str, Any]:
        """Return the plain data that ``from_mapping`` reads back to an equal profile."""
        data: dict[str, Any] = dump(self)
        return data

    def source_of(self, path: str) -> Provenance:
        """Return the provenance of the number at a dotted path such as ``network.rtt_ms``."""
        return self.provenance[_covering(path, self.provenance)]


def _covering(path: str, prefixes: Mapping[str, Any]) -> str:
    """Return the longest of ``prefixes`` that covers ``path``, or an empty text."""
    return max((p for p in prefixes if f"{path}.".startswith(f"{p}.")), key=len, default="")


def _unsourced(mapping: Mapping[str, Any]) -> list[str]:
    """Return a line for each number without provenance and each provenance of nothing."""
    sources = mapping.get("provenance")
    sources = {str(key): None for key in sources} if isinstance(sources, Mapping) else {}
    known = set(iter_paths(DeviceProfile))
    bare = [path for path, _, _ in iter_numbers(DeviceProfile, mapping) if not _covering(path, sources)]
    return [f"{path} has no provenance (add provenance.{path} with kind and from)" for path in bare] + [
        f"provenance[{key}] names nothing in the profile" for key in sources if key not in known
    ]


def _contradictions(mapping: Mapping[str, Any]) -> list[str]:
    """Return a line for each pair of values that cannot both be right."""
    at = {path: value for path, value, _ in iter_numbers(DeviceProfile, mapping)}
    pairs = [(f"compute.achievable_gflops.{d}", f"compute.peak_gflops.{d}") for d in ("fp32", "fp16", "bf16", "int8")]
    pairs += [("energy.idle_w", "energy.load_w"), ("availability.amplitude", "availability.p")]
    found = [
        f"{low} must not exceed {high} = {at[high]:g}, got {at[low]:g}"
        for low, high in pairs
        if low in at and high in at and at[low] > at[high]
    ]
    if "compute.achievable_gflops.fp32" not in at:
        found.append("compute.achievable_gflops.fp32 is missing: predictions need it")
    return found + availability_problems(mapping.get("availability"))
