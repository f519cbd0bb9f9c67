"""The engine of ``fedpeft server``: real devices, through Flower's SuperLink."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fedpeft import __version__
from fedpeft import config as cfg
from fedpeft.client.examples import names_in
from fedpeft.client.own import DEPLOYED
from fedpeft.core import wire
from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.core.events import Observer, Preparing, RunFinished, tell
from fedpeft.engines.deploy.apps import LAUNCH_KEY
from fedpeft.engines.deploy.certificates import ensure_certificates
from fedpeft.engines.deploy.control import Control, sync
from fedpeft.engines.deploy.event_file import NAME, Follower, ServerFailedError
from fedpeft.engines.deploy.folder import write_file
from fedpeft.engines.deploy.processes import ServerProcesses, is_alive
from fedpeft.engines.deploy.registry import Registry
from fedpeft.engines.deploy.superlink import admin_secret
from fedpeft.engines.deploy.whereabouts import Whereabouts, add_device_hint, held, split_address
from fedpeft.engines.session import Start, travelling
from fedpeft.server.checkpoint import load_checkpoint
from fedpeft.server.privacy import check_ledgers
from fedpeft.server.record import SUMMARY

LOOK_S = 0.2
SYNC_S = 5.0
TRIES = 4
"""Times that a ServerApp is started for one run."""


APP = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedpeft-run"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedpeft"

[tool.flwr.app.components]
serverapp = "fedpeft.engines.deploy.apps:server_app"
clientapp = "fedpeft.engines.deploy.apps:client_app"

[tool.flwr.app.config]
{config_key} = ""
{launch_key} = ""
"""
"""The Flower app that is submitted: names of ours and no code."""


@dataclass(frozen=True, kw_only=True)
class Deploy:
    """Runs a config on the devices that are registered at this server.

    Args:
        address: host and port that devices connect to.
        state_dir: folder of certificates, keys, registry and database.
        wait_for: devices to wait for before the first round, None for a whole cohort.
        hosts: further names and addresses by which devices reach this machine, for its certificate.

    Raises:
        ConfigError: the address is none.
    """

    address: str = "127.0.0.1:8000"
    state_dir: str = "~/.fedpeft/server"
    wait_for: int | None = None
    hosts: tuple[str, ...] | list[str] = ()

    def __post_init__(self) -> None:
        split_address(self.address)
        if self.wait_for is not None and (type(self.wait_for) is not int or self.wait_for < 1):
            raise ConfigError(f"server.wait_for must be null or a whole number >= 1, got {self.wait_for!r}")

    def run(self, config: cfg.Config, start: Start) -> dict[str, Any]:
        """Run a config to its end and return the summary; Ctrl-C is recorded and raised again."""
        _refuse_what_devices_cannot(config)
        state = Path(self.state_dir).expanduser().absolute()
        registry = Registry.load(state)
        if not registry.devices:
            raise ConfigError(f"no device is registered in {state} (run: {add_device_hint(state)})")
        with held(state):
            return self._run(config, start, state, registry)

    def _run(self, config: cfg.Config, start: Start, state: Path, registry: Registry) -> dict[str, Any]:
        certificates = ensure_certificates(state, [split_address(self.address)[0], *self.hosts])
        admin_secret(state)
        tell(start.observers, Preparing(what="reading the names of labels and groups"))
        config = {**config, DEPLOYED: {**names_in(config), "version": __version__}}
        tell(start.observers, Preparing(what=f"starting Flower's SuperLink at {self.address}"))
        run_dir = Path(config["run_dir"])
        launch = {
            "nodes": str(state / "nodes.json"),
            "wait_for": self.wait_for or min(config["cohort_size"], len(registry.devices)),
            "resuming": start.checkpoint is not None,
            "earlier": dict(start.earlier),
            "started_at": start.started_at,
            "folder": os.getcwd(),
        }
        with (
            ServerProcesses(address=self.address, certificates=certificates, state_dir=state) as server,
            Control(server.local_address, certificates.ca) as control,
        ):
            Whereabouts(address=self.address, run_dir=str(run_dir), pid=os.getpid()).write(state)
            control.stop_earlier_runs()
            _note_nodes(control, state)
            return _Run(control, server, state, start.observers).to_its_end(config, launch)


def _submit(control: Control, config: cfg.Config, launch: Mapping[str, Any]) -> int:
    app = {"pyproject.toml": APP.format(config_key=wire.RUN_CONFIG_KEY, launch_key=LAUNCH_KEY).encode()}
    settings = {wire.RUN_CONFIG_KEY: travelling(config), LAUNCH_KEY: json.dumps(dict(launch))}
    return control.start_run(app, settings)


def _note_nodes(control: Control, state: Path) -> None:
    """Let the registered devices in, and tell the ServerApp whose key each node has."""
    nodes = sync(control, Registry.load(state))
    path, found = state / "nodes.json", _json({str(node): device.client_id for node, device in nodes.items()})
    if not path.exists() or path.read_bytes() != found:
        write_file(path, found)


class _ServerGoneError(EngineError):
    """The ServerApp ended without a word."""


class _Run:
    """A run that goes on in Flower's processes, which are kept alive.

    Args:
        control: the SuperLink.
        server: the processes.
        state: the server's state folder.
        observers: told of the events.
    """

    def __init__(self, control: Control, server: ServerProcesses, state: Path, observers: tuple[Observer, ...]) -> None:
        self._control, self._server, self._state, self._observers = control, server, state, observers
        self._looked_s = time.monotonic()

    def to_its_end(self, config: cfg.Config, launch: Mapping[str, Any]) -> dict[str, Any]:
        """Submit the run, follow it, and return the summary; a ServerApp that is killed goes on from its checkpoint.

        Raises:
            ServerFailedError: the ServerApp ended with an error.
            PrivacyError: it was killed, and what it has spent cannot be told.
            EngineError: it was killed again and again.
        """
        run_dir = Path(config["run_dir"])
        for tries_left in reversed(range(TRIES)):
            (run_dir / NAME).unlink(missing_ok=True)
            run_id = _submit(self._control, config, launch)
            try:
                return self._follow(run_dir, run_id)
            except _ServerGoneError as error:
                if not tries_left:
                    raise
                tell(self._observers, Preparing(what=f"{error}: starting it again"))
                with suppress(EngineError):
                    self._control.stop_run(run_id)
            checkpoint = load_checkpoint(run_dir / "checkpoints")
            check_ledgers(config, checkpoint, finished=False)
            earlier = json.loads((run_dir / SUMMARY).read_bytes()) if checkpoint else {}
            launch = {**launch, "resuming": checkpoint is not None, "earlier": earlier}
        raise AssertionError("the last try returns or raises")

    def _follow(self, run_dir: Path, run_id: int) -> dict[str, Any]:
        """Hand on the events and return the summary."""
        follower = Follower(run_dir / NAME)
        app: psutil.Process | None = None
        while True:
            # Looked for before it is listened to: its last words count.
            gone = "" if app is None or is_alive(app) else "the ServerApp was killed"
            if time.monotonic() - self._looked_s > SYNC_S:
                gone = self._look(run_id) or gone
                app = app or self._server.server_app()
            for event in follower.new():
                if isinstance(event, ServerFailedError):
                    raise event
                tell(self._observers, event)
                if isinstance(event, RunFinished):
                    return dict(event.summary)
            if gone:
                raise _ServerGoneError(gone)
            time.sleep(LOOK_S)

    def _look(self, run_id: int) -> str:
        """Start again what has died, let new devices in, and return how the ServerApp ended, "" where it did not."""
        self._looked_s = time.monotonic()
        if self._server.keep():
            return ""
        try:
            _note_nodes(self._control, self._state)
            status, ended, details = self._control.run_status(run_id)
        except EngineError:
            # A SuperLink that has just been started again.
            return ""
        failed = status == "finished" and ended != "completed"
        return f"the ServerApp ended ({f'{ended} {details}'.strip()})" if failed else ""


def _refuse_what_devices_cannot(config: cfg.Config) -> None:
    """Refuse settings that mean something on simulated devices only.

    Raises:
        ConfigError: all of them.
    """
    problems = []
    if config["devices"]["availability"]:
        problems.append(
            "devices.availability=true is for simulated devices: real ones come and go as they do (set "
            "devices.availability=false)"
        )
    if config["round"]["buffer_size"] is not None:
        problems.append("round.buffer_size works on the virtual clock only (leave it null)")
    if problems:
        raise ConfigError(problems)


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data) + "\n").encode()
