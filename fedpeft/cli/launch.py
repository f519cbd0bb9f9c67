"""One run from a composed config: its directory, its observers, its engine, its report."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedpeft import config as cfg
from fedpeft.cli.display import LiveDisplay
from fedpeft.core.errors import CheckpointError, ConfigError, FedPeftError, PrivacyError
from fedpeft.privacy.statement import counted

if TYPE_CHECKING:
    from fedpeft.core.events import Observer
    from fedpeft.server.checkpoint import Checkpoint

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCK_PATIENCE_S = 2.0


def launch(config: cfg.Config, overrides: Sequence[str], started_at: float | None = None) -> int:
    """Run a config, or continue one, and return the exit code.

    Args:
        config: composed and resolved; ``run_dir`` is filled in.
        overrides: what was said on the command line: a resumed run takes the rest from its own config.
        started_at: ``time.time()`` when this run began, None for now; what lies before the first round is start-up.
    """
    from fedpeft.cli.main import print_error

    started_at = time.time() if started_at is None else started_at
    try:
        resuming = config["resume"] is not None
        config = resumed_config(Path(config["resume"]), config, overrides) if resuming else new_config(config)
        cfg.check(config)
        run_dir = Path(config["run_dir"])
        new = not run_dir.exists()
        with _locked(run_dir):
            if not resuming and _holds_rounds(run_dir):
                raise ConfigError(
                    f"{run_dir} already holds a run: choose another run_dir, or continue it with resume={run_dir}"
                )
            _write_config(run_dir, config)
            with _nothing_left(run_dir, new):
                return _run(config, run_dir, resuming, started_at)
    except FedPeftError as error:
        print_error(error)
        return error.exit_code
    except Exception as error:
        run_dir = config["run_dir"]
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            what = f"{error.filename or run_dir}: {error.strerror}; free space"
        else:
            # Most likely a strategy or task of the user's own, whose author needs the whole trace.
            traceback.print_exc()
            what = "the run stopped on the error above; mend it"
        print_error(FedPeftError(f"{what}, then continue with: {_command(config)} resume={run_dir}"))
        return 1


def _run(config: cfg.Config, run_dir: Path, resuming: bool, started_at: float) -> int:
    from fedpeft.engines.session import Start
    from fedpeft.server.files import read_lines
    from fedpeft.server.privacy import check_ledgers

    checkpoint, earlier = _read_checkpoint(run_dir, config) if resuming else (None, {})
    try:
        check_ledgers(config, checkpoint, finished=earlier.get("status") == "finished")
    except PrivacyError as error:
        raise ConfigError(str(error)) from error
    engine = cfg.build(config["engine"])
    code = 0
    try:
        with _display(config) as display:
            observers: list[Observer] = [*([display] if display else []), *_trackers(config, run_dir)]
            start = Start(checkpoint=checkpoint, earlier=earlier, observers=tuple(observers), started_at=started_at)
            engine.run(config, start)
    except KeyboardInterrupt:
        print(f"fedpeft: interrupted; continue with: {_command(config)} resume={run_dir}", file=sys.stderr)
        code = 130
    if code == 0 and (reason := _nothing_learned(read_lines(run_dir / "rounds.jsonl"))):
        print(f"fedpeft: {reason}", file=sys.stderr)
        code = 1
    if config["report"]:
        _report(run_dir)
    return code


def _command(config: cfg.Config) -> str:
    """Return what a person typed to start the run."""
    return "fedpeft server" if cfg.is_deployed(config) else "fedpeft simulate"


def _with_full_paths(config: cfg.Config) -> cfg.Config:
    """Return the config with local folders spelled out: a run may be resumed from another working directory."""
    named = {name: Path(str(config[name]["path"])).expanduser() for name in ("model", "task")}
    full = {name: {**config[name], "path": os.path.abspath(path)} for name, path in named.items() if path.exists()}
    return {**config, **full}


def _nothing_learned(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why the model is what it was before training, None where a round changed it."""
    if not any(row["num_replies"] for row in rounds):
        return "no reply was good in any round: clients.jsonl and the report say why"
    if all(row.get("kept") for row in rounds):
        return f"the old model stayed after every round, at last because: {rounds[-1]['kept']}"
    return None


def new_config(config: cfg.Config) -> cfg.Config:
    """Return the config of a new run, with everything decided that depends on the machine or the moment."""
    from fedpeft.tasks.models import resolve_dtype

    config = _with_full_paths(config)
    model = {**config["model"], "dtype": resolve_dtype(config["model"]["dtype"])}
    return {**config, "model": model, "run_id": uuid.uuid4().hex, "run_dir": os.path.abspath(config["run_dir"])}


def resumed_config(run_dir: Path, config: cfg.Config, overrides: Sequence[str]) -> cfg.Config:
    """Return the config of the run in ``run_dir`` with what may change taken from the command line.

    Raises:
        ConfigError: no run is there, or the command line would change what the run computes.
    """
    import yaml

    path = run_dir / "config.yaml"
    try:
        stored: cfg.Config = yaml.safe_load(path.read_text(encoding="utf-8"))
        stored["run_id"], stored["model"]["dtype"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{run_dir} holds no run to continue: {path.name} cannot be read ({type(error).__name__}) (set resume)"
        ) from error
    keys = [override.split("=", 1)[0].lstrip("+~") for override in overrides]
    if "run_dir" in keys:
        raise ConfigError(f"run_dir cannot be given beside resume: the run goes on in {run_dir} (leave it out)")
    if "engine" in keys and _goes_on_with(stored, config, run_dir):
        keys.remove("engine")
    config = _with_full_paths(config)
    wanted = config if "experiment" in keys else _with_values(stored, config, [key for key in keys if key != "resume"])
    if wanted["model"]["dtype"] == "auto":
        wanted = {**wanted, "model": {**wanted["model"], "dtype": stored["model"]["dtype"]}}
    ignore = cfg.LAUNCH_KEYS
    changed = cfg.differences(
        {k: v for k, v in stored.items() if k not in ignore}, {k: v for k, v in wanted.items() if k not in ignore}
    )
    # Rounds and sizes that other settings repeat by interpolation follow from those already compared.
    if changed:
        raise ConfigError(
            [f"{run_dir} was made with other settings, {line} (leave it out, or start a new run)" for line in changed]
        )
    launch = {key: wanted[key] for key in ignore if key in wanted and key not in ("run_dir", "run_id", "resume")}
    return {**stored, **launch, "run_dir": str(run_dir.absolute())}


def _goes_on_with(stored: cfg.Config, config: cfg.Config, run_dir: Path) -> bool:
    """Return whether a run goes on with the engine that it had, whose settings then stay but for those that are given.

    Raises:
        ConfigError: simulated devices cannot go on as real ones, nor these as simulated ones.
    """
    was, now = cfg.is_deployed(stored), cfg.is_deployed(config)
    if was != now:
        kinds = {True: "real devices", False: "simulated devices"}
        raise ConfigError(
            f"{run_dir} ran on {kinds[was]}, not on {kinds[now]} (continue it with: {_command(stored)} "
            f"resume={run_dir})"
        )
    return bool(stored["engine"].get("_target_") == config["engine"].get("_target_"))


def _with_values(stored: cfg.Config, config: cfg.Config, keys: Sequence[str]) -> cfg.Config:
    """Return ``stored`` with the values that ``config`` has at the dotted ``keys``."""
    merged: cfg.Config = json.loads(json.dumps(stored))
    for key in keys:
        *parents, last = key.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = cfg.look_up(config, key)
    return merged


def _read_checkpoint(run_dir: Path, config: cfg.Config) -> tuple[Checkpoint | None, dict[str, Any]]:
    """Return the newest checkpoint, None when the run was killed before its first, and the summary beside it."""
    from fedpeft.server.checkpoint import count_personal, load_checkpoint

    checkpoint = load_checkpoint(run_dir / "checkpoints")
    if checkpoint is not None and checkpoint.server_round >= config["rounds"]:
        raise ConfigError(
            f"{run_dir} has done its {counted(checkpoint.server_round, 'round')} (give rounds=... to go further)"
        )
    found = count_personal(run_dir / "checkpoints")
    if checkpoint is not None and found < checkpoint.personal:
        raise ConfigError(
            f"{run_dir}/checkpoints/clients is {'not whole' if found else 'gone'}: {checkpoint.personal} clients kept "
            f"something of their own there, {found} still have it, and the others would begin anew (put it back, or "
            "start a new run)"
        )
    try:
        earlier = json.loads((run_dir / "summary.json").read_bytes())
    except (OSError, ValueError):
        earlier = {}
    whole = checkpoint is not None and isinstance(cfg.look_up({"summary": earlier}, "summary.initial"), dict)
    return checkpoint, earlier if whole else {}


def _display(config: cfg.Config) -> AbstractContextManager[LiveDisplay | None]:
    if config["display"] == "none":
        return nullcontext()
    return LiveDisplay(live=False if config["display"] == "plain" else None)


def _trackers(config: cfg.Config, run_dir: Path) -> list[Observer]:
    from fedpeft.report.trackers import TensorBoardTracker, WandbTracker

    make: dict[str, Callable[[], Observer]] = {
        "tensorboard": lambda: TensorBoardTracker(run_dir),
        "wandb": lambda: WandbTracker(run_dir, project=config["name"]),
    }
    return [make[name]() for name in config["tracking"]]


def _report(run_dir: Path) -> None:
    from fedpeft.report import numbers
    from fedpeft.report.page import write_report

    if (run_dir / "summary.json").exists():
        print(f"report: {numbers.path(write_report([run_dir]))}")


def _holds_rounds(run_dir: Path) -> bool:
    """Whether there is something to lose.

    A start that failed before its first round may be tried again in the same place.
    """
    return any((run_dir / name).exists() for name in ("rounds.jsonl", "checkpoints"))


def _write_config(run_dir: Path, config: cfg.Config) -> None:
    import yaml

    from fedpeft.server.files import write_atomic

    write_atomic(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())


@contextmanager
def _nothing_left(run_dir: Path, new: bool) -> Iterator[None]:
    """Take away a directory that was made for a run which was refused before it wrote anything of its own."""
    try:
        yield
    except (ConfigError, PrivacyError):
        if new and {path.name for path in run_dir.iterdir()} <= {"config.yaml", ".lock"}:
            shutil.rmtree(run_dir)
        raise


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this process: two at once would tear its tables apart."""
    # Workers of a launcher that was killed this moment hold it a little longer than they seem to live.
    until = time.monotonic() + LOCK_PATIENCE_S
    while (lock := _try_lock(run_dir)) is None:
        if time.monotonic() > until:
            raise CheckpointError(f"{run_dir} is in use by another process (wait for it, or choose another run_dir)")
        time.sleep(0.02)
    with lock:
        yield


def _try_lock(run_dir: Path) -> IO[str] | None:
    """Return the directory's lock, None where another process has it, or has just taken the directory away."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"run_dir {run_dir} cannot be written: {error.strerror} (set run_dir)") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(run_dir / ".lock")):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    lock.close()
    return None
