"""The options of ``fedpeft client``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedpeft.cli.devices import OneLineParser

_EXAMPLES = """examples:
  fedpeft client --server fl.example.org:8000 --ca ca.crt --key device.key --data data.jsonl
  fedpeft client --server fl.example.org:8000 --ca ca.crt --key device.key --data data.jsonl --check \\
      --device rpi5_8gb --run +experiment=demo
  fedpeft client --server fl.example.org:8000 --ca ca.crt --key device.key --data data.jsonl --device rpi5_8gb \\
      --require-epsilon 8 --max-seconds 600
  fedpeft client systemd --server fl.example.org:8000 --ca ca.crt --key device.key --data data.jsonl \\
      | sudo tee /etc/systemd/system/fedpeft-client.service
"""


def client_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser; paths come out with ``~`` resolved.

    Args:
        prog: how the command is called.
    """
    parser = OneLineParser(
        prog=prog,
        description="Take part in a federation with this device's own data, which never leaves it. "
        "`fedpeft client systemd` with the same options prints a unit file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--server", required=True, metavar="HOST:PORT", help="where fedpeft server listens")
    add("--ca", type=_path, metavar="FILE", help="the server's ca.crt")
    add("--key", type=_path, metavar="FILE", help="this device's key, made by fedpeft server add-device")
    add("--insecure", action="store_true", help="no TLS and no key: for a server on this machine only")
    add("--data", type=_path, required=True, metavar="PATH", help="its examples: parquet, csv or jsonl")
    add("--id", type=int, metavar="N", help="its client id, where the key does not say it")
    add("--model", metavar="PATH", help="its copy of the base model (default: what the run names)")
    add("--device", metavar="PROFILE", help="what it is: a preset, or a file by fedpeft devices bench --output")
    add("--accelerator", choices=("cpu", "cuda"), default="cpu", help="where the model computes (%(default)s)")
    add(
        "--state-dir",
        type=_path,
        default=_path("~/.fedpeft/client"),
        metavar="DIR",
        help="what it keeps (~/.fedpeft/client)",
    )
    add(
        "--poll", type=float, default=0.5, metavar="S", help="seconds between two questions to the server (%(default)s)"
    )
    add("--check", action="store_true", help="look whether everything is ready, and do nothing else")
    fence = parser.add_argument_group("what the server may not have done here")
    add = fence.add_argument
    add("--allow", action="append", default=[], metavar="PREFIX", help="class paths that a config may name besides")
    add(
        "--require-epsilon",
        type=float,
        metavar="E",
        help="refuse runs that do not protect this client at least so; what it lets out in all runs together counts",
    )
    add("--max-steps", type=int, metavar="N", help="optimiser steps a round")
    add("--max-seconds", type=float, metavar="S", help="seconds that a message may take")
    add(
        "--max-memory-mb", type=float, metavar="MB", help="memory of the process that works, libraries included (Linux)"
    )
    add("--max-bytes", type=int, metavar="B", help="bytes of arrays taken in one message")
    check = parser.add_argument_group("for --check")
    check.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="OVERRIDE",
        help="what the run to come will be, as on the server's command line: --run +experiment=demo, again for more",
    )
    check.add_argument("--text-column", action="append", metavar="NAME", help="a column of texts (default: text)")
    check.add_argument("--label-column", default="label", metavar="NAME", help="the column of labels (%(default)s)")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()
