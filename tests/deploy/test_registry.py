"""Who may join: ids, keys and names of devices on file, two administrators at once, and damage."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.registry import FILE, Registry


def public_key(curve: ec.EllipticCurve | None = None) -> str:
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def test_devices_get_the_smallest_free_client_id(tmp_path: Path) -> None:
    registry = Registry.load(tmp_path)
    assert registry.devices == ()
    assert [registry.add(name, public_key()).client_id for name in ("a", "b", "c")] == [0, 1, 2]
    registry.remove("b")
    assert [registry.add(name, public_key()).client_id for name in ("d", "e")] == [1, 3]
    assert [(device.name, device.client_id) for device in registry.devices] == [("a", 0), ("d", 1), ("c", 2), ("e", 3)]
    assert Registry.load(tmp_path).devices == registry.devices


def test_a_key_may_be_made_from_the_client_id(tmp_path: Path) -> None:
    registry, asked = Registry.load(tmp_path), []
    registry.add("a", public_key())
    registry.add("b", lambda client_id: asked.append(client_id) or public_key())
    assert asked == [1]


def test_comments_on_keys_do_not_matter(tmp_path: Path) -> None:
    registry, key = Registry.load(tmp_path), public_key()
    assert registry.add("a", f"{key} me@laptop\n").public_key == key
    with pytest.raises(ConfigError, match="that key is device 'a' already"):
        registry.add("b", key)


def test_names_and_removed_keys_are_refused(tmp_path: Path) -> None:
    registry, key = Registry.load(tmp_path), public_key()
    registry.add("a", key)
    with pytest.raises(ConfigError, match="there is a device 'a' already"):
        registry.add("a", public_key())
    with pytest.raises(ConfigError, match=r"no device 'b' \(registered: a\)"):
        registry.remove("b")
    assert registry.remove("a").public_key == key
    with pytest.raises(ConfigError, match="was removed before"):
        Registry.load(tmp_path).add("a", key)
    assert registry.add("a", public_key()).client_id == 0


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a b", "a/b", "..", "a\n", "\u00fc", "a" * 64])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a device's name must be"):
        Registry.load(tmp_path).add(name, public_key())
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("name", ["a", "0", "pi-4.kitchen_2", "a" * 63])
def test_names(tmp_path: Path, name: str) -> None:
    assert Registry.load(tmp_path).add(name, public_key()).name == name


@pytest.mark.parametrize(
    "text", ["", "ecdsa-sha2-nistp384 AAAA", public_key(ec.SECP256R1()), "ssh-rsa AAAAB3NzaC1yc2E="]
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="key"):
        Registry.load(tmp_path).add("a", text)
    assert not (tmp_path / FILE).exists()


def add_many(folder: str, first: str, count: int) -> None:
    registry = Registry.load(Path(folder))
    for number in range(count):
        registry.add(f"{first}{number}", public_key())


def test_two_administrators_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=add_many, args=(str(tmp_path), first, 15)) for first in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    devices = Registry.load(tmp_path).devices
    assert [device.client_id for device in devices] == list(range(30))
    assert {device.name for device in devices} == {f"{first}{number}" for first in "ab" for number in range(15)}


def test_a_registry_held_elsewhere_sees_what_was_added(tmp_path: Path) -> None:
    old = Registry.load(tmp_path)
    Registry.load(tmp_path).add("a", public_key())
    assert old.devices == ()
    with old.held():
        assert [device.name for device in old.devices] == ["a"]


def damage(content: dict[str, Any], *path: Any, value: Any) -> None:
    *most, last = path
    for key in most:
        content = content[key]
    if value is ...:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("format",), 2, "format is 2, not 1"),
        (("format",), ..., "'format' is missing"),
        (("devices",), None, "not iterable"),
        (("devices", 0), "a", "a device lacks"),
        (("devices", 0, "name"), "A", "name"),
        (("devices", 0, "name"), 3, "expected string"),
        (("devices", 0, "name"), "b", "same name"),
        (("devices", 0, "client_id"), 1, "same client_id"),
        (("devices", 0, "client_id"), -1, "client_id must be"),
        (("devices", 0, "client_id"), True, "client_id must be"),
        (("devices", 0, "client_id"), 0.0, "client_id must be"),
        (("devices", 0, "public_key"), "ecdsa", "public key"),
        (("devices", 0, "added"), "yesterday", "yesterday"),
        (("devices", 0, "added"), "2026-01-01T00:00:00", "time zone"),
        (("devices", 0, "added"), ..., "lacks or has too much of added"),
        (("devices", 0, "more"), 1, "lacks or has too much of more"),
        (("removed_keys",), ["x"], "public key"),
        (("removed_keys",), ..., "'removed_keys' is missing"),
    ],
)
def test_every_field_is_checked(tmp_path: Path, path: tuple[Any, ...], value: Any, word: str) -> None:
    registry = Registry.load(tmp_path)
    for name in ("a", "b"):
        registry.add(name, public_key())
    content = json.loads((tmp_path / FILE).read_text())
    damage(content, *path, value=value)
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        Registry.load(tmp_path)
    text = str(caught.value)
    assert "\n" not in text and f"{tmp_path / FILE} is damaged: " in text and "backup" in text
    assert word in text


def test_a_key_twice_and_a_removed_key_are_damage(tmp_path: Path) -> None:
    registry = Registry.load(tmp_path)
    for name in ("a", "b"):
        registry.add(name, public_key())
    whole = json.loads((tmp_path / FILE).read_text())
    key = whole["devices"][1]["public_key"]
    twice = json.loads(json.dumps(whole))
    twice["devices"][0]["public_key"] = key
    for content, word in ((twice, "same public_key"), ({**whole, "removed_keys": [key]}, "removed key is registered")):
        (tmp_path / FILE).write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=word):
            Registry.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b'"x"'])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        Registry.load(tmp_path)
    assert "\n" not in str(caught.value) and "is damaged" in str(caught.value)


def test_a_damaged_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"{")
    with pytest.raises(ConfigError, match="is damaged"):
        Registry(tmp_path, (), ()).add("a", public_key())
    assert (tmp_path / FILE).read_bytes() == b"{"
