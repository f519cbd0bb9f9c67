"""What ``fedpeft server devices`` and ``fedpeft server status`` show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import EngineError

if TYPE_CHECKING:
    from rich.table import Table

    from fedpeft.engines.deploy.control import Node
    from fedpeft.engines.deploy.whereabouts import Whereabouts

_ROUND = ("round", "cohort_size", "num_replies", "dropped", "train_loss", "wall_s", "eval")


def show_devices(folder: Path, *, as_json: bool) -> None:
    """Print the registered devices.

    Args:
        folder: the server's state folder.
        as_json: whether to print JSON in place of a table.

    Raises:
        ConfigError: the registry is damaged.
    """
    from fedpeft.engines.deploy.keys import fingerprint
    from fedpeft.engines.deploy.registry import Registry

    rows: list[dict[str, Any]] = [
        {
            "name": device.name,
            "client_id": device.client_id,
            "added": device.added,
            "fingerprint": fingerprint(device.public_key),
            "public_key": device.public_key,
        }
        for device in Registry.load(folder).devices
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        shown = [{**row, "added": row["added"][:10]} for row in rows]
        _print_table(shown, {"name": "device", "client_id": "client", "added": "added", "fingerprint": "key"})
    else:
        print("no devices yet (fedpeft server add-device NAME)")


def show_status(folder: Path, *, as_json: bool) -> None:
    """Print whether a server runs, its newest round, and which devices are online.

    Args:
        folder: the server's state folder.
        as_json: whether to print JSON in place of lines and a table.

    Raises:
        ConfigError: a file in the state folder is damaged.
        CheckpointError: the run's table of rounds is damaged.
    """
    from fedpeft.engines.deploy.whereabouts import Whereabouts

    server = Whereabouts.read(folder)
    nodes, reason = _ask(server, folder)
    devices = _rows(folder, nodes)
    newest = _newest_round(Path(server.run_dir)) if server and nodes is not None else None
    if as_json:
        where = {"address": server.address, "run_dir": server.run_dir, "pid": server.pid} if server else {}
        found = {"running": nodes is not None, "reason": reason, **where}
        print(json.dumps({"server": found, "round": newest, "devices": devices}, indent=2))
        return
    print(f"no server runs: {reason}" if server is None or nodes is None else _headline(server, newest))
    if devices:
        shown = [{**row, "online": _online(row), "last_seen_s": _ago(row)} for row in devices]
        _print_table(shown, {"name": "device", "client_id": "client", "online": "online", "last_seen_s": "last seen"})
    else:
        print("no devices yet (fedpeft server add-device NAME)")


def _ask(server: Whereabouts | None, folder: Path) -> tuple[dict[str | None, Node] | None, str | None]:
    """Return the running server's nodes by public key, or None and why there are none."""
    if server is None:
        return None, f"there is none with the state folder {folder} (start it: fedpeft server)"
    if not server.alive:
        return None, f"process {server.pid}, which was at {server.address}, has ended (start it: fedpeft server)"
    from fedpeft.engines.deploy.control import Control

    try:
        with Control(server.local_address, folder / "ca.crt") as control:
            return {node.public_key: node for node in control.nodes()}, None
    except EngineError as error:
        return None, str(error)


def _rows(folder: Path, nodes: dict[str | None, Node] | None) -> list[dict[str, Any]]:
    """Return the registered devices; ``online`` is None where no server could say."""
    from fedpeft.engines.deploy.registry import Registry

    rows = []
    for device in Registry.load(folder).devices:
        node = nodes.get(device.public_key) if nodes is not None else None
        rows.append(
            {
                "name": device.name,
                "client_id": device.client_id,
                "online": None if nodes is None else node is not None and node.online,
                "last_seen_s": node.last_seen_s if node else None,
                "node_id": str(node.node_id) if node else None,
            }
        )
    return rows


def _newest_round(run_dir: Path) -> dict[str, Any] | None:
    from fedpeft.server.files import read_lines

    rows = read_lines(run_dir / "rounds.jsonl")
    return {key: rows[-1].get(key) for key in _ROUND} if rows else None


def _headline(server: Whereabouts, newest: dict[str, Any] | None) -> str:
    line = f"server {server.address} runs (process {server.pid}), run {server.run_dir}"
    if newest is None:
        return f"{line}\nno round has ended yet"
    words = [f"round {newest['round']}: {newest['num_replies']} of {newest['cohort_size']} clients answered"]
    words += [f"{reason} {count}" for reason, count in (newest["dropped"] or {}).items()]
    if newest["train_loss"] is not None:
        words.append(f"training loss {newest['train_loss']:.4g}")
    words += [f"{name} {value:.4g}" for name, value in (newest["eval"] or {}).items() if name in ("accuracy", "loss")]
    return f"{line}\n{', '.join(words)}"


def _online(row: dict[str, Any]) -> str:
    return {None: "?", True: "yes", False: "no"}[row["online"]]


def _ago(row: dict[str, Any]) -> str:
    from fedpeft.report.numbers import duration

    if row["online"] is None:
        return "?"
    return "never" if row["last_seen_s"] is None else f"{duration(row['last_seen_s'])} ago"


def _print_table(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table: Table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for key, title in columns.items():
        # Names and keys may be longer than the line, and half of one is of no use.
        long = key in ("name", "fingerprint")
        table.add_column(
            title,
            justify="right" if key == "client_id" else "left",
            no_wrap=not long,
            overflow="fold",
            min_width=None if long else len(title),
        )
    for row in rows:
        table.add_row(*(str(row[key]) for key in columns))
    Console(highlight=False, markup=False, emoji=False).print(table)
