"""The apps of a run on real devices, as Flower's processes load them.

``flwr-serverapp`` loads `server_app`. A device joins with ``fedpeft client``, which brings a ClientApp of its own;
`client_app` is what a plain SuperNode would get, and says so.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedpeft.core import wire
from fedpeft.core.errors import ConfigError
from fedpeft.engines.deploy.parenthood import die_with

LAUNCH_KEY = "fedpeft-launch"
"""Entry of Flower's run config beside the run's config: what only this start of the server needs, as JSON."""

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a config on the devices that are connected; everything goes to its run directory."""
    from fedpeft.engines.deploy.serving import serve_run
    from fedpeft.engines.flower_private_server import fit_chunks

    fit_chunks()
    # Nobody would hear what a ServerApp does whose SuperExec was killed.
    die_with(os.getppid())
    # Flower ends its processes by SIGTERM, and a run that is interrupted must say so on record.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    launch: dict[str, Any] = json.loads(str(context.run_config[LAUNCH_KEY]))
    os.chdir(Path(launch["folder"]))
    serve_run(grid, str(context.run_config[wire.RUN_CONFIG_KEY]), launch)


@client_app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Refuse: this device has not said what it holds.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("this run needs devices that join with: fedpeft client --server ... --key ... --data ...")
