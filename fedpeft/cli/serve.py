"""``fedpeft server`` with a config: the Hydra app that runs a federation on real devices."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fedpeft import config as cfg
from fedpeft.cli import simulate
from fedpeft.core.errors import ConfigError

HELP = """usage: fedpeft server [OVERRIDE ...] [--cfg job] [--help]
       fedpeft server add-device NAME | remove-device NAME | devices | status

Run federated fine-tuning on the devices that are registered here. The configuration is that of fedpeft simulate:

  fedpeft server add-device kitchen-pi                        register a device; prints what to do on it
  fedpeft server +experiment=demo                             wait for the devices, then run the demo on them
  fedpeft server task=text_classification task.path=DIR       evaluate on your own texts; the devices train on theirs
  fedpeft server server.address=0.0.0.0:8000 server.wait_for=3
  fedpeft server resume=runs/2026-11-20_12-00-00              continue a run
  fedpeft server status                                       who is there, and which round it is

Registered devices are the clients: num_clients is their number, and cohort_size at most that.
A run writes the same directory as a simulation; times in it are measured, with the predictions beside them.
exit codes: 0 done, 1 failed, 2 wrong configuration, 130 interrupted (checkpoint and report are kept)"""

ENGINE = "engine=deploy"


def run(argv: Sequence[str]) -> int:
    """Run the app with command-line arguments and return the exit code."""
    if set(argv) & {"-h", "--help"}:
        print(HELP)
        return 0
    if {"-m", "--multirun"} & set(argv):
        raise ConfigError("a server runs one federation at a time (leave -m out)")
    args = overrides(argv)
    # A service manager ends it by SIGTERM: the run is put on record as interrupted, like after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return simulate.main([ENGINE, *_sizes(args), *args])


def overrides(argv: Sequence[str]) -> list[str]:
    """Return a server's overrides as the config has them: what a person calls the server's is the engine's there.

    Raises:
        ConfigError: they name an engine.
    """
    if any(arg.split("=", 1)[0] == "engine" for arg in argv):
        raise ConfigError("fedpeft server has an engine of its own (leave engine out, or use fedpeft simulate)")
    return ["engine." + arg.removeprefix("server.") if arg.startswith("server.") else arg for arg in argv]


def _sizes(argv: Sequence[str]) -> list[str]:
    """Return overrides that make the registered devices the clients, and say so where that changes something."""
    from fedpeft.engines.deploy.registry import Registry
    from fedpeft.engines.deploy.whereabouts import add_device_hint

    given = {arg.split("=", 1)[0]: arg for arg in argv if "=" in arg}
    if "resume" in given:
        # Its own config says it.
        return []
    config = cfg.compose([ENGINE, *(arg for arg in argv if not arg.startswith("-"))])
    devices = Registry.load(Path(config["engine"]["state_dir"]).expanduser()).devices
    if not devices:
        raise ConfigError(
            f"no device is registered in {config['engine']['state_dir']} "
            f"(run: {add_device_hint(Path(config['engine']['state_dir']))})"
        )
    number = max(device.client_id for device in devices) + 1
    wanted = {"num_clients": number, "cohort_size": min(config["cohort_size"], number)}
    changed = {key: value for key, value in wanted.items() if config[key] != value and key not in given}
    if changed:
        print(
            f"fedpeft: {len(devices)} registered device{'s' if len(devices) > 1 else ''}: "
            + ", ".join(f"{key}={value}" for key, value in changed.items()),
            file=sys.stderr,
        )
    return [f"{key}={value}" for key, value in changed.items()]
