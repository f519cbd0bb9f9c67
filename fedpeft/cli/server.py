"""``fedpeft server``: the administrator's commands beside the server itself, which ``cli/serve`` runs."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.cli.devices import OneLineParser
from fedpeft.core.errors import ConfigError, EngineError, FedPeftError

if TYPE_CHECKING:
    from fedpeft.engines.deploy.registry import Device, Registry

_EXAMPLES = """examples:
  fedpeft server +experiment=demo server.address=0.0.0.0:8000     run a federation over the registered devices
  fedpeft server add-device kitchen-pi4 --server fl.example.org:8000
  fedpeft server add-device lab-jetson --key jetson.pub           the private key stays on the device
  fedpeft server devices
  fedpeft server status --json
  fedpeft server remove-device kitchen-pi4                        shut it out, at a running server at once
"""
COMMANDS = {
    "add-device": "make a device's key, or take its public key, and register it",
    "remove-device": "shut a device out for good",
    "devices": "list the registered devices",
    "status": "show which devices are online and the newest round",
}
STATE_DIR = "~/.fedpeft/server"


def main(argv: list[str]) -> int:
    """Run ``fedpeft server ARGV`` and return its exit code.

    Args:
        argv: what follows ``server`` on the command line: one of ``COMMANDS``, or what the Hydra app takes.

    Raises:
        ConfigError: a name, key, address or file is wrong.
        EngineError: a running server could not be told.
        SystemExit: by argparse, after ``--help`` (0) and on wrong arguments (2).
    """
    if not argv or argv[0] not in COMMANDS:
        from fedpeft.cli.serve import run

        return int(run(argv))
    options = _parser().parse_args(argv)
    folder = Path(options.state_dir).expanduser()
    if options.command == "add-device":
        return _add(folder, options)
    if options.command == "remove-device":
        return _remove(folder, options)
    from fedpeft.cli import server_status

    if options.command == "devices":
        server_status.show_devices(folder, as_json=options.json)
    else:
        server_status.show_status(folder, as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(
        prog="fedpeft server",
        description="Say which devices may join a federation, and see who is there.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        one = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EXAMPLES, formatter_class=raw
        )
        if name.endswith("-device"):
            one.add_argument("name", metavar="NAME", help="of the device: a-z 0-9 . _ -, such as kitchen-pi4")
        if name == "add-device":
            one.add_argument(
                "--key", metavar="FILE", help="public key that was made on the device (ssh-keygen -t ecdsa -b 384)"
            )
            one.add_argument("--server", metavar="HOST:PORT", help="how the device reaches the server")
        one.add_argument(
            "--state-dir", metavar="DIR", default=STATE_DIR, help=f"the server's folder (default: {STATE_DIR})"
        )
        one.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _add(folder: Path, options: argparse.Namespace) -> int:
    from fedpeft.engines.deploy.keys import check_name, ensure_certificates, fingerprint
    from fedpeft.engines.deploy.registry import Registry
    from fedpeft.engines.deploy.whereabouts import split_address

    check_name(options.name)
    server = options.server or _own_address(folder)
    before = _content(folder / "server.crt")
    certificates = ensure_certificates(folder, [split_address(server)[0]])
    registry = Registry.load(folder)
    key = folder / "devices" / f"{options.name}.key"
    device = _register(registry, options.name, key, options.key)
    on_device = f"{options.name}.key" if options.key is None else Path(options.key).name.removesuffix(".pub")
    found = {
        "name": device.name,
        "client_id": device.client_id,
        "public_key": device.public_key,
        "fingerprint": fingerprint(device.public_key),
        "added": device.added,
        "server": server,
        "ca": str(certificates.ca),
        "key": str(key) if options.key is None else None,
        "command": f"fedpeft client --server {server} --ca ca.crt --key {on_device} --data data.jsonl",
        "restart": before not in (None, _content(certificates.certificate)),
    }
    return _report(found, _added_lines(found), folder, registry, as_json=options.json)


def _register(registry: Registry, name: str, path: Path, public_key: str | None) -> Device:
    """Register a device by the public key in a file, or by a new key whose private half goes to ``path``."""
    from fedpeft.engines.deploy.folder import read_file
    from fedpeft.engines.deploy.keys import make_device_key, public_key_text

    def make(client_id: int) -> str:
        # What lies there is of a device that was never registered: a crash came between.
        path.unlink(missing_ok=True)
        return make_device_key(path, name=name, client_id=client_id)

    if public_key is None:
        return registry.add(name, make)
    text = read_file(Path(public_key)).decode(errors="replace")
    if "PRIVATE KEY" in text:
        raise ConfigError(
            f"{public_key} is a private key, which stays on the device (give its public half, the .pub file)"
        )
    return registry.add(name, public_key_text(text, what=public_key))


def _remove(folder: Path, options: argparse.Namespace) -> int:
    from fedpeft.engines.deploy.registry import Registry

    registry = Registry.load(folder)
    device = registry.remove(options.name)
    (folder / "devices" / f"{options.name}.key").unlink(missing_ok=True)
    found = {"name": device.name, "client_id": device.client_id, "removed": True}
    lines = [f"device {device.name} is shut out; client {device.client_id} is free, its key is refused from now on"]
    return _report(found, lines, folder, registry, as_json=options.json)


def _report(
    found: dict[str, Any],
    lines: list[str],
    folder: Path,
    registry: Registry,
    *,
    as_json: bool,
) -> int:
    """Tell a running server, then say what was done; where the server cannot be told the exit code is 1."""
    problem = None
    try:
        told = _tell(folder, registry)
    except FedPeftError as error:
        told, problem = False, str(error)
    if as_json:
        print(json.dumps({**found, "told": told}, indent=2))
    else:
        print("\n".join([*lines, "the running server knows" if told else "the server will know when it starts"]))
    if problem is None:
        return 0
    print(f"fedpeft: the running server was not told: {problem}", file=sys.stderr)
    return EngineError.exit_code


def _tell(folder: Path, registry: Registry) -> bool:
    """Bring a running server's devices up to date; return whether there is one."""
    from fedpeft.engines.deploy.whereabouts import Whereabouts

    server = Whereabouts.read(folder)
    if server is None or not server.alive:
        return False
    from fedpeft.engines.deploy.control import Control, sync

    with Control(server.local_address, folder / "ca.crt") as control:
        sync(control, registry)
    return True


def _added_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"device {found['name']} is client {found['client_id']}, its key is {found['fingerprint']}",
        "copy to the device (scp -p):",
        f"  {found['ca']}",
    ]
    if found["key"]:
        lines.append(f"  {found['key']}   and delete it here: it is the device's alone")
    lines += ["run on the device:", f"  {found['command']}"]
    if found["restart"]:
        lines.append("the server's certificate has new names: a running server shows it when it is started again")
    return lines


def _own_address(folder: Path) -> str:
    """Return the address of the server that runs or ran last, as another machine could reach it."""
    from fedpeft.engines.deploy.whereabouts import DEFAULT_PORT, Whereabouts, join_address, split_address

    server = Whereabouts.read(folder)
    host, port = split_address(server.address) if server else ("0.0.0.0", DEFAULT_PORT)
    return join_address(socket.gethostname() if host in ("0.0.0.0", "::") else host, port)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
