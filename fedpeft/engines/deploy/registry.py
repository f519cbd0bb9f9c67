"""Which devices may join: ``devices.json`` in the server's state folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.folder import locked, read_file, write_file
from fedpeft.engines.deploy.keys import check_name, public_key_text

FILE = "devices.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Device:
    """A registered device.

    Attributes:
        name: what people call it.
        client_id: the client that it is in every run, >= 0.
        public_key: OpenSSH text without a comment; the server knows a device by it, whatever else the device claims.
        added: when it was registered, ISO 8601 with a time zone.
    """

    name: str
    client_id: int
    public_key: str
    added: str


class Registry:
    """The devices of a server.

    Every change reads the file again under a lock, so that two administrators at once lose nothing. A key that was
    removed is never taken again: a SuperLink refuses it too, and who found it on a stolen device stays out.

    Example:
        >>> registry = Registry.load(Path("~/.fedpeft/server").expanduser())    # doctest: +SKIP
        >>> device = registry.add("kitchen-pi4", Path("device.pub").read_text())    # doctest: +SKIP
    """

    def __init__(self, folder: Path, devices: Iterable[Device], removed: Iterable[str]) -> None:
        self._folder = folder
        self._devices = tuple(sorted(devices, key=lambda device: device.client_id))
        self._removed = tuple(removed)

    @classmethod
    def load(cls, folder: Path) -> Registry:
        """Read ``folder/devices.json``; no file is a registry without devices.

        Raises:
            ConfigError: the file is damaged or cannot be read.
        """
        path = folder / FILE
        if not path.exists():
            return cls(folder, (), ())
        return cls(folder, *_parse(read_file(path), path))

    @property
    def devices(self) -> tuple[Device, ...]:
        """The registered devices by client id, as they were when the registry was last read or changed."""
        return self._devices

    @contextmanager
    def held(self) -> Iterator[None]:
        """Read the file again and keep every other process from changing it meanwhile.

        Raises:
            ConfigError: the file is damaged, or the folder cannot be written.
        """
        with locked(self._folder, "devices"):
            now = Registry.load(self._folder)
            self._devices, self._removed = now._devices, now._removed
            yield

    def add(self, name: str, public_key: str | Callable[[int], str]) -> Device:
        """Register a device under the smallest free client id.

        Args:
            name: its name.
            public_key: OpenSSH text, or a function from the client id to it, for a key file that names the id.

        Raises:
            ConfigError: the name or key is wrong or registered already, the key was removed before, or the file cannot
                be read or written.
        """
        check_name(name)
        with self.held():
            if any(device.name == name for device in self._devices):
                raise ConfigError(f"there is a device {name!r} already (choose another name, or remove-device {name})")
            taken = {device.client_id for device in self._devices}
            client_id = next(number for number in range(len(taken) + 1) if number not in taken)
            text = public_key_text(public_key if isinstance(public_key, str) else public_key(client_id))
            self._refuse_known(text)
            added = datetime.now(UTC).isoformat(timespec="seconds")
            device = Device(name=name, client_id=client_id, public_key=text, added=added)
            self._save([*self._devices, device], self._removed)
        return device

    def remove(self, name: str) -> Device:
        """Take a device out of the registry and return what it was. Its client id is free, its key is worthless.

        Raises:
            ConfigError: there is no such device, or the file cannot be read or written.
        """
        with self.held():
            found = next((device for device in self._devices if device.name == name), None)
            if found is None:
                known = ", ".join(device.name for device in self._devices) or "none yet"
                raise ConfigError(f"there is no device {name!r} (registered: {known})")
            self._save([one for one in self._devices if one is not found], [*self._removed, found.public_key])
        return found

    def _refuse_known(self, public_key: str) -> None:
        for device in self._devices:
            if device.public_key == public_key:
                raise ConfigError(f"that key is device {device.name!r} already (every device needs a key of its own)")
        if public_key in self._removed:
            raise ConfigError("that key was removed before and stays refused (make a new one on the device)")

    def _save(self, devices: Iterable[Device], removed: Iterable[str]) -> None:
        changed = Registry(self._folder, devices, removed)
        data = {
            "format": _FORMAT,
            "devices": [asdict(device) for device in changed._devices],
            "removed_keys": list(changed._removed),
        }
        write_file(self._folder / FILE, (json.dumps(data, indent=2) + "\n").encode())
        self._devices, self._removed = changed._devices, changed._removed


def _parse(data: bytes, path: Path) -> tuple[list[Device], list[str]]:
    """Return the devices and removed keys of a registry file, every field checked."""
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT:
            raise ValueError(f"format is {content['format']!r}, not {_FORMAT}")
        devices = [_device(row) for row in content["devices"]]
        removed = [public_key_text(text) for text in content["removed_keys"]]
        for field in ("name", "client_id", "public_key"):
            values = [getattr(device, field) for device in devices]
            if len(set(values)) < len(values):
                raise ValueError(f"two devices have the same {field}")
        if set(removed) & {device.public_key for device in devices}:
            raise ValueError("a removed key is registered")
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConfigError(f"{path} is damaged: {reason} (restore it from a backup)") from error
    return devices, removed


def _device(row: Any) -> Device:
    wrong = set(row) ^ {"name", "client_id", "public_key", "added"}
    if wrong:
        raise ValueError(f"a device lacks or has too much of {', '.join(sorted(map(str, wrong)))}")
    client_id, added = row["client_id"], row["added"]
    if isinstance(client_id, bool) or not isinstance(client_id, int) or client_id < 0:
        raise ValueError(f"client_id must be a whole number >= 0, got {client_id!r}")
    if datetime.fromisoformat(added).tzinfo is None:
        raise ValueError(f"added must have a time zone, got {added!r}")
    return Device(
        name=check_name(row["name"]), client_id=client_id, public_key=public_key_text(row["public_key"]), added=added
    )
