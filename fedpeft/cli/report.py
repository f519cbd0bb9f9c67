"""``fedpeft report``: one HTML page from one or several run directories."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

_EXAMPLES = """examples:
  fedpeft report runs/demo                     write runs/demo/report.html
  fedpeft report runs/a runs/b -o compare.html put two runs side by side
  fedpeft report runs/a runs/b --json          print both summaries and write nothing
"""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments behind ``fedpeft report``.

    Returns:
        The exit status, 0.

    Raises:
        ReportError: a run directory cannot be read, or the page cannot be written.
        SystemExit: by argparse, after ``--help`` (0) and on wrong arguments (2).
    """
    arguments = _parser().parse_args(list(argv))
    if arguments.json:
        from fedpeft.report.reader import read_run

        views = [read_run(folder) for folder in arguments.runs]
        print(json.dumps([{"run_dir": str(view.path), **view.summary} for view in views], indent=2))
        return 0
    from fedpeft.report.page import write_report

    print(write_report(arguments.runs, arguments.output))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedpeft report",
        description="Write one self-contained HTML page about one or several runs: tables and plots, side by side.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory, finished or not")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the page to write (default: RUN/report.html for one run, ./report.html for several)",
    )
    way.add_argument(
        "--json", action="store_true", help="print the summaries as one JSON list instead of writing a page"
    )
    return parser
