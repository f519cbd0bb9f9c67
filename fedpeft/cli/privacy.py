"""``fedpeft privacy``: what a budget costs in noise, what noise costs in privacy, and what a ledger says was spent."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.privacy.accounting import Release, epsilon, named
from fedpeft.privacy.calibrate import noise_multiplier_for
from fedpeft.privacy.ledger import LEDGER, Ledger
from fedpeft.privacy.statement import STATEMENT, PrivacyStatement, counted, show_epsilon

_EXAMPLES = """examples:
  fedpeft privacy epsilon --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 --delta 1e-5
  fedpeft privacy epsilon --sampling-rate 1 --noise-multiplier 10 --steps 100 --delta 1e-5 --json
  fedpeft privacy calibrate --epsilon 8 --sampling-rate 0.1 --steps 100 --delta 1e-4
  fedpeft privacy ledger runs/a
  fedpeft privacy ledger runs/a/ledger.jsonl --delta 1e-6
"""
_ADJACENCY = "add or remove one unit: one example or one client, whichever is drawn, clipped and noised"
_MEANING = "with or without the unit, the chance of any outcome differs by at most a factor exp(epsilon), plus delta"
_DELTA = 1e-5


def main(argv: list[str]) -> int:
    """Run ``fedpeft privacy ARGV`` and return its exit code.

    Args:
        argv: what follows ``privacy`` on the command line.

    Raises:
        ConfigError: a number is out of range, or there is no ledger.
        PrivacyError: a ledger was edited, or lacks what its run has on record.
        SystemExit: by argparse, after ``--help`` (0) and on wrong arguments (2).
    """
    options = _parser().parse_args(argv)
    if options.command == "ledger":
        return _ledger(Path(options.path), options.delta, options.json)
    if options.command == "calibrate":
        options.noise_multiplier = noise_multiplier_for(
            options.epsilon, options.delta, sampling_rate=options.sampling_rate, steps=options.steps
        )
    found = _spent(options)
    if options.command == "calibrate":
        by_rdp = noise_multiplier_for(
            options.epsilon, options.delta, sampling_rate=options.sampling_rate, steps=options.steps, accountant="rdp"
        )
        found = {**found, "target_epsilon": options.epsilon, "noise_multiplier_rdp": by_rdp}
    _show(found, as_json=options.json)
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fedpeft: {message} ({self.prog} --help has examples)\n")


def _parser() -> argparse.ArgumentParser:
    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EXAMPLES, formatter_class=raw
        )
        made.add_argument("--json", action="store_true", help="print JSON for programs")
        return made

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="fedpeft privacy",
        description="Compute privacy budgets and noise, and read ledgers.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="epsilon|calibrate|ledger")
    spender = command("epsilon", "compute the epsilon that a noise multiplier spends")
    calibrator = command("calibrate", "compute the noise multiplier that an epsilon asks for")
    reader = command("ledger", "check a ledger and print what was spent")
    spender.add_argument("--noise-multiplier", type=float, required=True, metavar="Z", help="noise over sensitivity")
    calibrator.add_argument("--epsilon", type=float, required=True, metavar="E", help="what may be spent")
    for one in (spender, calibrator):
        one.add_argument(
            "--sampling-rate", type=float, required=True, metavar="Q", help="chance to take part, 1 for all"
        )
        one.add_argument("--steps", type=int, required=True, metavar="T", help="releases: rounds, or optimiser steps")
        one.add_argument("--delta", type=float, required=True, metavar="D", help="well below 1 / number of units")
    reader.add_argument("path", metavar="RUN_OR_FILE", help=f"a run directory, or a {LEDGER}")
    reader.add_argument(
        "--delta", type=float, metavar="D", help=f"delta to account at; without it the run's, or else {_DELTA:g}"
    )
    return parser


# -- epsilon and calibrate ------------------------------------------------------------------------------


def _spent(options: argparse.Namespace) -> dict[str, Any]:
    release = Release(
        noise_multiplier=options.noise_multiplier, sampling_rate=options.sampling_rate, steps=options.steps
    )
    found, by_rdp = epsilon([release], options.delta), epsilon([release], options.delta, accountant="rdp")
    return {
        "epsilon": found,
        "epsilon_rdp": by_rdp,
        "delta": options.delta,
        "noise_multiplier": release.noise_multiplier,
        "sampling_rate": release.sampling_rate,
        "steps": release.steps,
        "accountant": named(found, by_rdp),
        "adjacency": _ADJACENCY,
    }


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(_dump(found))
        return
    rows = {
        "noise multiplier": f"{found['noise_multiplier']:g}",
        "epsilon": _bounds(found["epsilon"], found["epsilon_rdp"], 5),
        "delta": f"{found['delta']:g}",
        "releases": f"{found['steps']:,}, {_sampling(found['sampling_rate'])}",
        "adjacency": found["adjacency"],
        "meaning": _MEANING,
    }
    if "target_epsilon" in found:
        rows["noise multiplier"] += (
            f" for epsilon {found['target_epsilon']:g} (by RDP it would be {found['noise_multiplier_rdp']:g})"
        )
    for name, text in rows.items():
        print(f"{name:18}{text}")


def _bounds(found: float, by_rdp: float, digits: int = 4) -> str:
    """Return the smaller bound by name, and the other where it is another."""
    if named(found, by_rdp) == "rdp":
        return f"{show_epsilon(found, digits)} by RDP (PLD's bound is no smaller here)"
    return f"{show_epsilon(found, digits)} by PLD ({show_epsilon(by_rdp, digits)} by RDP)"


def _sampling(rate: float) -> str:
    return "everyone in each" if rate == 1 else f"each of a Poisson sample at rate {rate:g} (independent coins)"


def _dump(data: Any) -> str:
    """Return JSON, with the text ``inf`` where a number is infinite: JSON has none."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return "inf" if value == math.inf else value

    return json.dumps(plain(data), indent=2)


# -- ledger ---------------------------------------------------------------------------------------------


def _ledger(path: Path, delta: float | None, as_json: bool) -> int:
    from fedpeft.server.audit import audit_run

    for statement in sorted(path.rglob(STATEMENT)) if path.is_dir() else []:
        audit_run(statement.parent)
    files = sorted(path.rglob(LEDGER), key=lambda file: (len(file.parts), file)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ConfigError(f"there is no privacy ledger in {path}: name a run directory or a {LEDGER}")
    delta = _delta_of(files[0].parent) if delta is None else delta
    found = [_read(file, delta) for file in files]
    if as_json:
        print(_dump({"delta": delta, "ledgers": found}))
        return 0
    width = max((len(unit["unit"]) for one in found for unit in one["units"]), default=4)
    for one in found:
        print(f"{one['file']}: {counted(one['releases'], 'release')}, every line as it was booked")
        for unit in one["units"]:
            print(
                f"  {unit['unit']:{width}}  epsilon {_bounds(unit['epsilon'], unit['epsilon_rdp'])}"
                f" after {counted(unit['steps'], 'step')}, {_rounds(unit)}"
            )
    print(f"epsilon at delta {delta:g}")
    return 0


def _rounds(unit: dict[str, Any]) -> str:
    first, last = unit["first_round"], unit["last_round"]
    return f"round {first}" if first == last else f"rounds {first} to {last}"


def _delta_of(folder: Path) -> float:
    """Return the delta that the run in this folder promises."""
    file = folder / STATEMENT
    if not file.is_file():
        return _DELTA
    try:
        return PrivacyStatement.from_dict(json.loads(file.read_text())).delta
    except (OSError, ValueError, AttributeError) as error:
        raise PrivacyError(f"{file} cannot be read ({error}): give --delta") from error


def _read(file: Path, delta: float) -> dict[str, Any]:
    ledger = Ledger(file, read_only=True)
    units = []
    for unit in ledger.units():
        rounds = [entry.server_round for entry in ledger.entries if entry.unit == unit]
        units.append(
            {
                "unit": unit,
                "epsilon": ledger.epsilon(unit, delta),
                "epsilon_rdp": ledger.epsilon(unit, delta, accountant="rdp"),
                "steps": sum(release.steps for release in ledger.releases(unit)),
                "first_round": min(rounds),
                "last_round": max(rounds),
            }
        )
    return {"file": str(file), "releases": len(ledger.entries), "head": ledger.head, "units": units}
