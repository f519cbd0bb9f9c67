"""Who has which device: what every fleet can do, and its answer in two bytes a client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, overload

import numpy as np

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.device_profiles.fields import Number
from fedpeft.device_profiles.schema import DeviceProfile

MOST_NAME = 64
"""Characters that a device's name may have: it travels in every client's hello."""


class Devices(Sequence[str]):
    """The device of each client, 0 .. num_clients - 1: a small number each, and every name once.

    Args:
        codes: (num_clients,), index into ``names``; kept in the smallest unsigned dtype that holds them.
        names: device names.

    Example:
        >>> devices = Devices(np.array([1, 0, 1]), ("laptop_cpu", "phone_low"))
        >>> devices[2], devices.present, devices.codes.nbytes
        ('phone_low', ['laptop_cpu', 'phone_low'], 3)
    """

    __slots__ = ("codes", "names")

    def __init__(self, codes: np.ndarray, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.codes = codes.astype(np.min_scalar_type(max(len(self.names) - 1, 0)))
        self.codes.flags.writeable = False

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self._named(self.codes[index])
        return self.names[int(self.codes[index])]

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    @property
    def present(self) -> list[str]:
        """The names that some client has, in the order of ``names``."""
        return self._named(np.unique(self.codes))

    def tolist(self) -> list[str]:
        """Return one name for each client."""
        return self._named(self.codes)

    def _named(self, codes: np.ndarray) -> list[str]:
        named: list[str] = np.array(self.names, dtype=object)[codes].tolist()
        return named


class SupportsProfile(Protocol):
    """What knows devices by name: a fleet, or devices without clients."""

    def profile(self, name: str) -> DeviceProfile:
        """Return the profile of one of them."""
        ...


class AnyFleet(ABC):
    """What the rest of fedpeft asks of a fleet.

    Attributes:
        name: what reports call it.
        weights: share of each device; of a fleet with very many devices, a few that stand for all.
    """

    name: str
    weights: Mapping[str, float]

    @abstractmethod
    def profile(self, name: str) -> DeviceProfile:
        """Return the profile of a device of this fleet.

        Raises:
            ConfigError: it has no such device, or the profile has problems.
        """

    @abstractmethod
    def assign_codes(self, num_clients: int, seed: int) -> Devices:
        """Return the device of each client, 0 .. num_clients - 1, compactly.

        Args:
            num_clients: at least 1.
            seed: the run's seed; the same one gives the same devices.

        Raises:
            ConfigError: there is no client.
        """

    def trace_problems(self) -> list[str]:
        """Return a line for each trace of presence that cannot be followed, [] where all can."""
        from fedpeft.device_profiles.availability import trace_of

        kinds = dict.fromkeys(self.profile(name).availability for name in self.weights)
        problems = []
        for kind in kinds:
            try:
                if kind.model == "trace":
                    trace_of(kind)
            except DataError as error:
                problems.append(str(error))
        return problems

    def assign(self, num_clients: int, seed: int) -> list[str]:
        """Return what ``assign_codes`` does, as one name for each client."""
        return self.assign_codes(num_clients, seed).tolist()


def refuse_nobody(num_clients: object) -> None:
    """Refuse a number of clients that is none.

    Raises:
        ConfigError: it is no whole number above 0.
    """
    if problems := Number(unit="clients", whole=True).problems(num_clients, "num_clients"):
        raise ConfigError(problems)
