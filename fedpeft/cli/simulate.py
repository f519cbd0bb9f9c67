"""``fedpeft simulate``: the Hydra app that runs a federation on this machine."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpeft import config as cfg
from fedpeft.core.errors import ConfigError, FedPeftError
from fedpeft.core.paths import conf_dir

HELP = """usage: fedpeft simulate [OVERRIDE ...] [-m] [--cfg job] [--help] [--hydra-help]

Run federated fine-tuning over simulated devices. Every value of the configuration can be overridden:

  fedpeft simulate +experiment=demo                           the demo
  fedpeft simulate rounds=20 cohort_size=5 seed=1             other values
  fedpeft simulate partition=dirichlet partition.alpha=0.1    another group member, and one of its values
  fedpeft simulate task=text_classification task.path=DIR     your own texts (parquet, csv or jsonl)
  fedpeft simulate strategy._target_=my_package.MyStrategy    your own strategy
  fedpeft simulate -m method.rank=4,8,16 seed=0,1,2           a sweep: every combination, one run each
  fedpeft simulate resume=runs/2026-11-20_12-00-00 rounds=10  continue a run, here to a later last round
  fedpeft simulate --cfg job                                  show the composed configuration and stop

groups (choose with GROUP=NAME):
{groups}

A run writes its directory (run_dir=...): config, tables, checkpoints, adapter in Hugging Face PEFT format, report.html.
exit codes: 0 done, 1 failed, 2 wrong configuration, 130 interrupted (checkpoint and report are kept)"""

MAX_CHECKED_JOBS = 1000


def main(argv: Sequence[str]) -> int:
    """Run the app with command-line arguments and return the exit code."""
    args = _overrides_first(argv)
    if set(args) & {"-h", "--help"}:
        print(HELP.format(groups=_groups()))
        return 0
    overrides = [arg for arg in args if not arg.startswith("-")]
    inspecting = bool({"--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--resolve"} & set(args))
    multirun = bool({"-m", "--multirun"} & set(args))
    if not inspecting:
        _check_before_start(overrides, multirun)
    if resume := _resume_path(overrides):
        if multirun:
            raise ConfigError(f"-m cannot sweep over the one run that resume={resume} continues (leave -m out)")
        if not (Path(resume) / "config.yaml").is_file():
            raise ConfigError(f"{resume} holds no run to continue: there is no config.yaml in it (set resume)")
        # Hydra makes its run directory: it must be the one that is continued, not a new empty one.
        args.insert(0, f"hydra.run.dir={_quote(str(Path(resume).absolute()))}")
    return _run_hydra(args)


def _overrides_first(argv: Sequence[str]) -> list[str]:
    """Return the arguments with all overrides in front: Hydra's parser takes no override on both sides of a flag."""
    overrides = [arg for arg in argv if not arg.startswith("-") and ("=" in arg or arg.startswith("~"))]
    return overrides + [arg for arg in argv if arg not in overrides]


def _run_hydra(args: list[str]) -> int:
    import hydra

    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(composed: Any) -> None:
        from fedpeft.cli.launch import launch
        from fedpeft.engines.session import process_started_at

        # The first job began with the process, imports included; later ones of a sweep begin now.
        codes.append(launch(*_job_config(composed), started_at=None if codes else process_started_at()))
        if codes[-1] == 130:
            sys.exit(130)

    sys.argv = ["fedpeft simulate", *args]
    job()
    return max(codes, default=0)


def _job_config(composed: Any) -> tuple[cfg.Config, list[str]]:
    """Return the plain config of one job, its run directory filled in, and the overrides that made it."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    config = cfg.plain(composed)
    config["run_dir"] = hydra_config.runtime.output_dir
    return config, list(hydra_config.overrides.task)


def _check_before_start(overrides: Sequence[str], multirun: bool) -> None:
    """Compose and check every job of a sweep before the first one starts.

    Raises:
        ConfigError: all problems of all jobs, each once.
    """
    problems: dict[str, None] = {}
    for job in _jobs(overrides) if multirun else [list(overrides)]:
        try:
            config = cfg.compose(job)
            cfg.check(config)
            _check_writable(Path(config["run_dir"]))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))


def _check_writable(run_dir: Path) -> None:
    # Hydra makes the directory before our code runs and would answer with a traceback.
    there = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"run_dir {run_dir} cannot be made: {there} is no folder that can be written (set run_dir)")


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [str(o.input_line)]
            for o in parsed
        ]
    except FedPeftError:
        raise
    except Exception as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return [list(job) for job in itertools.islice(itertools.product(*choices), MAX_CHECKED_JOBS)]


def _resume_path(overrides: Sequence[str]) -> str | None:
    values = [o.split("=", 1)[1].strip("'\"") for o in overrides if o.startswith("resume=")]
    return values[-1] if values and values[-1] not in ("null", "") else None


def _quote(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def _groups() -> str:
    folders = sorted(folder for folder in conf_dir().iterdir() if folder.is_dir() and folder.name != "device_profile")
    return "\n".join(f"  {folder.name:11} {', '.join(_members(folder))}" for folder in folders)


def _members(folder: Path) -> list[str]:
    """Return a group's members; those in folders of their own by their path, as they are chosen."""
    files = (file.relative_to(folder).with_suffix("") for file in folder.rglob("*.yaml") if file.stem != "base")
    return sorted(file.as_posix() for file in files)
