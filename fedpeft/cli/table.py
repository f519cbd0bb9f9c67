"""``fedpeft table``: the runs of a sweep as one Markdown table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

_EXAMPLES = """examples:
  fedpeft table runs/sweep --rows method --columns partition.alpha
  fedpeft table runs/sweep --rows strategy codec --values final.accuracy bytes_up virtual_clock_s
  fedpeft table runs/a runs/b --rows name --values rounds.product_error
"""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments behind ``fedpeft table``.

    Returns:
        The exit status, 0.

    Raises:
        ReportError: there is no finished run, or a path leads nowhere.
        SystemExit: by argparse, after ``--help`` (0) and on wrong arguments (2).
    """
    arguments = _parser().parse_args(list(argv))
    from fedpeft.report.sweeps import read_sweep, table

    runs = read_sweep(arguments.runs)
    print(table(runs, rows=arguments.rows, values=arguments.values, columns=arguments.columns))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedpeft table",
        description="Print the finished runs of a sweep as a Markdown table. Runs with the same labels, such as seeds, "
        "share a cell: mean and standard deviation.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the run_dir of a sweep, or run directories")
    parser.add_argument(
        "--rows", metavar="PATH", nargs="+", default=["name"], help="config paths that label a row (default: name)"
    )
    parser.add_argument("--columns", metavar="PATH", help="config path whose values become the columns")
    parser.add_argument(
        "--values",
        metavar="PATH",
        nargs="+",
        default=["final.accuracy"],
        help="summary paths, or rounds.NAME for a mean over the rounds (default: final.accuracy)",
    )
    return parser
