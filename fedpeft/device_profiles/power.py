"""What this machine draws, where the kernel says it: a discharging battery, or a processor's energy counter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/class")
_NAMES = {"battery": "the battery's discharge", "rapl": "the processor's energy counter (RAPL; not the whole board)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Watts at rest and under load.

    Attributes:
        idle_w: while nothing of ours runs.
        load_w: while it trains, above ``idle_w``.
        source: what was read, in words.
    """

    idle_w: float
    load_w: float
    source: str


class PowerMeter:
    """Reads watts from sysfs.

    Args:
        root: the folder that holds ``power_supply`` and ``powercap``.

    Attributes:
        kind: ``battery``, ``rapl`` or None where there is nothing to read.
    """

    def __init__(self, root: Path = SYSFS) -> None:
        self._batteries = [one for one in _folders(root / "power_supply") if _drawn_w(one) is not None]
        self._counters = [
            one
            for one in _folders(root / "powercap")
            if _is_package(one.name) and _number(one / "energy_uj") is not None
        ]
        self.kind = "battery" if self._batteries else "rapl" if self._counters else None

    @property
    def source(self) -> str:
        """What is read, in words."""
        return _NAMES[self.kind] if self.kind else "nothing"

    def idle_w(self, seconds: float) -> float | None:
        """Return the mean watts over some seconds of waiting, None where they cannot be read."""
        return self.during(lambda: time.sleep(seconds))

    def during(self, work: Callable[[], object]) -> float | None:
        """Return the mean watts while ``work`` runs: by the counters' difference, or the battery's at its end."""
        began = self.begin()
        work()
        return self.since(began)

    def begin(self) -> tuple[float, list[float | None]]:
        """Return what `since` needs."""
        return time.perf_counter(), self._energies_j()

    def since(self, began: tuple[float, list[float | None]]) -> float | None:
        """Return the mean watts since `begin`, None where they cannot be read."""
        started, before = began
        passed_s = time.perf_counter() - started
        if self.kind == "battery":
            watts = [_drawn_w(one) for one in self._batteries]
            return None if None in watts else sum(one for one in watts if one is not None)
        if self.kind is None or passed_s <= 0:
            return None
        drawn = 0.0
        for folder, first, last in zip(self._counters, before, self._energies_j(), strict=True):
            if first is None or last is None:
                return None
            # The counter begins again at 0 when it is full.
            drawn += (
                last - first if last >= first else last - first + (_number(folder / "max_energy_range_uj") or 0) / 1e6
            )
        return drawn / passed_s

    def _energies_j(self) -> list[float | None]:
        found = [_number(one / "energy_uj") for one in self._counters]
        return [None if value is None else value / 1e6 for value in found]


def _folders(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir())) if folder.is_dir() else iter(())


def _is_package(name: str) -> bool:
    """Whether a counter is a whole processor's: ``intel-rapl:0``, while ``intel-rapl:0:1`` is a part of it."""
    return name.count(":") == 1 and "rapl" in name


def _drawn_w(battery: Path) -> float | None:
    """Return what a battery gives, None where it is none, charges, or does not say."""
    try:
        if (battery / "status").read_text().strip() != "Discharging":
            return None
    except OSError:
        return None
    power, current, voltage = (_number(battery / name) for name in ("power_now", "current_now", "voltage_now"))
    if power is not None:
        return abs(power) / 1e6
    return None if current is None or voltage is None else abs(current) * voltage / 1e12


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None
