"""``fedpeft devices predict``: what a round of any config would take on any device."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedpeft.device_profiles.presets import list_profiles, load_profile

if TYPE_CHECKING:
    from rich.table import Table

    from fedpeft.client.blueprint import Blueprint
    from fedpeft.server.forecast import Forecast

EXAMPLES = """examples:
  fedpeft devices predict                                  a round of the default run on every preset
  fedpeft devices predict rpi5_8gb phone_low               on two of them
  fedpeft devices predict ./my_board.yaml method.rank=4 client.batch_size=8
  fedpeft devices predict model=smollm2 task=chitchat --learned 0.4 --json
  fedpeft devices predict phone_low model=hub model.path=my_model task=causal_lm task.path=. --seq-len 64 --fit

Overrides are those of fedpeft simulate. The model's config.json must be there; weights and data are not read. So every
text is taken to be as long as the config allows (--seq-len), there are two classes (--labels), and all tokens of a
language model's texts are learned (--learned).
"""
_MOST_NAME = 20
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add what ``predict`` takes."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="DEVICE|OVERRIDE",
        help="presets or YAML files (default: every preset); whatever has a = is an override, e.g. method.rank=4",
    )
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens of a batch (default: model.max_length)")
    parser.add_argument(
        "--examples", type=int, metavar="N", help="examples of a client, for client.local_steps=null (epochs)"
    )
    parser.add_argument("--labels", type=int, default=2, metavar="N", help="classes of a classification (default: 2)")
    parser.add_argument(
        "--learned", type=float, default=1.0, metavar="SHARE", help="share of tokens that are learned (default: 1)"
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="give each device the rank, layers and batch that fit it, as devices.fit=true",
    )


def predict(options: argparse.Namespace) -> int:
    """Print what a round would take on each device.

    Raises:
        ConfigError: a device, an override or an option is wrong; all problems of the config together.
        DataError: there is no model.
    """
    from fedpeft import config as cfg

    overrides = [word for word in options.words if "=" in word or word.startswith("~")]
    devices = [word for word in options.words if word not in overrides] or list_profiles()
    _check_devices(devices)
    config = cfg.compose(overrides)
    cfg.check(config)
    # Only now: they load torch and Flower, which takes seconds.
    from fedpeft.client.assumed import Assumed
    from fedpeft.client.blueprint import draw
    from fedpeft.server.forecast import forecast

    assumed = Assumed(
        seq_len=options.seq_len, num_examples=options.examples, num_labels=options.labels, learned=options.learned
    )
    blueprint = draw(config, assumed, devices)
    found = forecast(blueprint, fitted=options.fit)
    if options.json:
        print(json.dumps(facts(blueprint, found, fitted=options.fit), indent=2))
    else:
        _print(blueprint, found, fitted=options.fit)
    return 0


def facts(blueprint: Blueprint, found: Sequence[Forecast], *, fitted: bool) -> dict[str, Any]:
    """Return a forecast as plain data."""
    config = blueprint.config
    return {
        "model": config["model"]["path"],
        "method": type(blueprint.method).__name__,
        "strategy": config["strategy"]["_target_"].rpartition(".")[2],
        "dtype": blueprint.dtype,
        "dtype_of_this_machine": config["model"]["dtype"] == "auto",
        "seq_len": blueprint.seq_len,
        "num_steps": blueprint.num_steps,
        "num_labels": None if blueprint.sizing.task_kind == "causal_lm" else blueprint.assumed.num_labels,
        "learned": blueprint.assumed.learned if blueprint.sizing.task_kind == "causal_lm" else None,
        "deadline_s": config["round"]["deadline_s"],
        "fitted": fitted,
        "devices": [_row(one) for one in found],
    }


def _row(one: Forecast) -> dict[str, Any]:
    cost, work, choice = one.cost, one.work, one.choice
    return {
        "device": one.device,
        "rank": one.rank,
        "batch_size": one.batch_size,
        "checkpointing": one.checkpointing,
        "layers": choice.layers or None if choice else None,
        "flops": work.flops,
        "bytes_down": work.bytes_down,
        "bytes_up": work.bytes_up,
        "down_s": cost.down_s,
        "compute_s": cost.compute_s,
        "up_s": cost.up_s,
        "total_s": cost.total_s,
        "energy_j": cost.energy_j,
        "peak_memory_mb": cost.peak_memory_mb,
        "usable_memory_mb": one.usable_mb,
        "fits": one.fits,
    }


def _check_devices(devices: Sequence[str]) -> None:
    """Refuse what is no device, all of it together.

    Raises:
        ConfigError: with a line for each problem.
    """
    from fedpeft.core.errors import ConfigError

    problems: list[str] = []
    for name in dict.fromkeys(devices):
        try:
            load_profile(name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


# -- for people ------------------------------------------------------------------------------------------


def _print(blueprint: Blueprint, found: Sequence[Forecast], *, fitted: bool) -> None:
    from rich.console import Console

    rows, console = [_row(one) for one in found], Console(highlight=False, markup=False, emoji=False)
    console.print(_headline(facts(blueprint, found, fitted=fitted)))
    work = {key: {row[key] for row in rows} for key in ("flops", "bytes_down", "bytes_up", "batch_size", "rank")}
    if fitted or any(len(values) > 1 for values in work.values()):
        console.print(_table(rows, _WORK))
    else:
        console.print(_same_work(rows[0]))
    console.print(_table(rows, _COST))
    if not all(one.fits for one in found):
        hint = "nothing fits it" if fitted else "a run drops it as memory, --fit looks for what would fit"
        console.print(f"* does not fit: {hint}")
    deadline_s = blueprint.config["round"]["deadline_s"]
    if deadline_s is not None and (late := [one.device for one in found if one.cost.total_s > deadline_s]):
        hint = "nothing that fits is faster" if fitted else "--fit looks for less work"
        console.print(f"late for round.deadline_s={deadline_s:g}: {', '.join(late)} ({hint})")


def _headline(data: Mapping[str, Any]) -> str:
    assumed = f"{data['num_labels']} classes" if data["learned"] is None else f"{data['learned']:.0%} of tokens learned"
    return (
        f"one client's round: {data['method']} on {data['model']}, {data['strategy']}, {data['num_steps']} steps, "
        f"texts of {data['seq_len']} tokens, {data['dtype']}"
        f"{' (model.dtype=auto on this machine)' if data['dtype_of_this_machine'] else ''}, {assumed}"
    )


def _same_work(row: Mapping[str, Any]) -> str:
    rank = f"rank {row['rank']}, " if row["rank"] else ""
    return (
        f"everywhere: {rank}batch {row['batch_size']}, {_short(row['flops'])}FLOP, {_short(row['bytes_down'])}B down, "
        f"{_short(row['bytes_up'])}B up"
    )


_Columns = Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]]


def _table(rows: Sequence[Mapping[str, Any]], columns: _Columns) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # Presets stay on one line, paths may take more.
    table.add_column("profile", overflow="fold", min_width=min(_MOST_NAME, max(len(row["device"]) for row in rows)))
    for title, (unit, _) in columns.items():
        table.add_column(f"{title}\n{unit}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["device"], *(text(row) for _, text in columns.values()))
    return table


def _short(value: float) -> str:
    """Return three digits and a prefix, e.g. ``1.23 M``."""
    for scale, letter in _SCALES:
        if value >= scale:
            return f"{value / scale:,.3g} {letter}" if value < 999.5 * scale else f"{value / scale:,.0f} {letter}"
    return f"{value:.3g} "


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"


_COST: _Columns = {
    "down": ("s", lambda row: _seconds(row["down_s"])),
    "compute": ("s", lambda row: _seconds(row["compute_s"])),
    "up": ("s", lambda row: _seconds(row["up_s"])),
    "total": ("s", lambda row: _seconds(row["total_s"])),
    "energy": ("J", lambda row: _seconds(row["energy_j"])),
    "memory": ("MiB", lambda row: f"{row['peak_memory_mb']:,.0f}{'' if row['fits'] else '*'}"),
    "usable": ("MiB", lambda row: f"{row['usable_memory_mb']:,.0f}"),
}
_WORK: _Columns = {
    "rank": ("", lambda row: str(row["rank"] or "-")),
    "layers": ("", lambda row: str(row["layers"] or "all")),
    "batch": ("", lambda row: str(row["batch_size"])),
    "recompute": ("", lambda row: "yes" if row["checkpointing"] else "no"),
    "work": ("FLOP", lambda row: _short(row["flops"])),
    "down": ("B", lambda row: _short(row["bytes_down"])),
    "up": ("B", lambda row: _short(row["bytes_up"])),
}
