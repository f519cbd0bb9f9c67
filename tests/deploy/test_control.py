"""Devices at a real SuperLink: TLS and node authentication on the loopback, started once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from superlink import Link, activate, free_port, running_link

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.engines.deploy.control import Control, Node, sync
from fedpeft.engines.deploy.engine import APP
from fedpeft.engines.deploy.keys import ensure_certificates, make_device_key
from fedpeft.engines.deploy.registry import Registry


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with running_link(tmp_path_factory.mktemp("link")) as link:
        yield link


@pytest.fixture
def control(link: Link) -> Iterator[Control]:
    with Control(link.address, link.ca) as control:
        yield control
        for node in control.nodes():
            control.unregister(node.node_id)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path / "registry")


def add(registry: Registry, folder: Path, *names: str) -> None:
    for name in names:
        registry.add(
            name, lambda number, name=name: make_device_key(folder / f"{name}.key", name=name, client_id=number)
        )


def test_a_registered_device_may_join_and_a_removed_one_is_unknown(
    link: Link, control: Control, registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path, "pi", "nano")
    known = sync(control, registry)
    assert {device.name: device.client_id for device in known.values()} == {"pi": 0, "nano": 1}
    ids = {device.name: node_id for node_id, device in known.items()}
    assert activate(link, tmp_path / "pi.key") == ids["pi"]
    registry.remove("pi")
    assert sync(control, registry) == {ids["nano"]: registry.devices[0]}
    assert [node.node_id for node in control.nodes()] == [ids["nano"]]
    with pytest.raises(httpx.HTTPStatusError):
        activate(link, tmp_path / "pi.key")
    assert activate(link, tmp_path / "nano.key") == ids["nano"]


def test_a_key_that_nobody_registered_is_refused(link: Link, control: Control, tmp_path: Path) -> None:
    make_device_key(tmp_path / "stranger.key", name="stranger", client_id=0)
    with pytest.raises(httpx.HTTPStatusError):
        activate(link, tmp_path / "stranger.key")
    assert control.nodes() == []


def test_registering_twice_is_harmless(control: Control, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path, "pi")
    key = registry.devices[0].public_key
    first = control.register(key, name="pi")
    assert control.register(key) == first
    assert sync(control, registry) == sync(control, registry) == {first: registry.devices[0]}
    assert len(control.nodes()) == 1


def test_a_node_says_whether_and_when_it_was_seen(
    link: Link, control: Control, registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path, "pi")
    (node_id,) = sync(control, registry)
    key = registry.devices[0].public_key
    expected = Node(node_id=node_id, public_key=key, name="pi", owner="none", online=False, last_seen_s=None)
    assert control.nodes() == [expected]
    activate(link, tmp_path / "pi.key")
    (node,) = control.nodes()
    assert node.online
    # Heartbeats count 60 s ahead; a clock that runs on for 30 s between two requests would be another fault.
    assert node.last_seen_s is not None and 0 <= node.last_seen_s < 30


def test_a_removed_key_cannot_come_back(control: Control, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path, "pi")
    key = registry.devices[0].public_key
    node_id = control.register(key, name="pi")
    assert control.unregister(node_id)
    assert not control.unregister(node_id)
    with pytest.raises(EngineError, match="had the key of pi before"):
        control.register(key, name="pi")


def test_a_device_that_is_added_during_a_sync_stays(control: Control, tmp_path: Path) -> None:
    """The registry that is handed over was read before; what another administrator added since counts all the same."""
    old, new = Registry.load(tmp_path), Registry.load(tmp_path)
    add(new, tmp_path, "pi")
    assert [device.name for device in sync(control, old).values()] == ["pi"]


def test_another_authority_is_refused_in_one_line(link: Link, tmp_path: Path) -> None:
    others = ensure_certificates(tmp_path)
    with Control(link.address, others.ca) as control, pytest.raises(EngineError) as caught:
        control.nodes()
    text = str(caught.value)
    assert "\n" not in text and f"what answers at {link.address} is not the server of this ca.crt" in text


def test_nobody_there_is_one_line(link: Link) -> None:
    with Control(f"127.0.0.1:{free_port()}", link.ca) as control, pytest.raises(EngineError) as caught:
        control.nodes()
    text = str(caught.value)
    assert "\n" not in text and "no SuperLink answers at 127.0.0.1:" in text and "Connection refused" in text


def test_an_expired_authority_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path, now=datetime.now(UTC) - timedelta(days=4000))
    with pytest.raises(ConfigError, match="expired"):
        Control("127.0.0.1:1", made.ca)


def test_runs_that_a_killed_launcher_left_are_ended(control: Control) -> None:
    app = {"pyproject.toml": APP.format(config_key="config", launch_key="launch").encode()}
    runs = [control.start_run(app, {"config": "{}", "launch": "{}"}) for _ in range(2)]
    assert [control.run_status(run)[0] for run in runs] == ["pending", "pending"]
    control.stop_earlier_runs()
    assert [control.run_status(run)[:2] for run in runs] == [("finished", "stopped")] * 2
    # Ended once: another look, and a run that has ended by itself, are no error.
    control.stop_earlier_runs()
    control.stop_run(runs[0])
