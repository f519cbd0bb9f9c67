"""``fedpeft client``: one device in a federation, from the command line to the last fork."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from fedpeft.cli.client_options import client_parser
from fedpeft.core.errors import ConfigError, FedPeftError

if TYPE_CHECKING:
    from fedpeft.client.fence import Fence
    from fedpeft.client.own import OwnData
    from fedpeft.engines.deploy.answering import Answering

Made = TypeVar("Made")


def main(argv: list[str]) -> int:
    """Run ``fedpeft client ARGV`` and return its exit code.

    Args:
        argv: what follows ``client`` on the command line.

    Raises:
        ConfigError: an option, key or certificate is wrong; all problems that can be seen at once are told together.
        EngineError: the server refuses this device.
        SystemExit: by argparse, after ``--help`` (0) and on wrong arguments (2); 0 when it was asked to end.
    """
    if argv[:1] == ["systemd"]:
        from fedpeft.cli.systemd import unit

        options = client_parser("fedpeft client systemd").parse_args(argv[1:])
        print(unit(options))
        return 0
    options = client_parser("fedpeft client").parse_args(argv)
    if options.check:
        return _examine(options)
    _serve(options)


def _examine(options: argparse.Namespace) -> int:
    """Print the doctor's findings as they come; return 1 where there is a problem."""
    from fedpeft.cli.serve import ENGINE, overrides
    from fedpeft.engines.deploy.doctor import Check, Device, examine

    problems: list[str] = []
    fence = _tried(problems, lambda: _fence(options))
    _tried(problems, lambda: _client_id(options))
    given = _tried(problems, lambda: overrides(options.run)) or []
    if any(one.startswith("task=") for one in given) and not any(one.startswith("task.path=") for one in given):
        # The server's own file is not here; this device's has the same columns.
        given = [*given, f"task.path={options.data}"]
    device = Device(
        server=options.server,
        ca=options.ca,
        key=options.key,
        data=options.data,
        state_dir=options.state_dir,
        text_columns=options.text_column or ["text"],
        label_column=options.label_column,
        model=options.model,
        accelerator=options.accelerator,
        profile=options.device,
        run=[ENGINE, *given],
        fence=fence,
    )
    found = [Check(name="options", state="problem", text=one) for one in problems]
    worst = bool(found)
    for check in chain(found, examine(device)):
        print(check.line(), flush=True)
        worst = worst or check.state == "problem"
    return int(worst)


def _serve(options: argparse.Namespace) -> NoReturn:
    from fedpeft.engines.deploy.client_folder import ClientFolder
    from fedpeft.engines.deploy.device import Client
    from fedpeft.engines.deploy.executor import ForkingExecutor
    from fedpeft.engines.deploy.node import NodeSettings
    from fedpeft.engines.deploy.resident import ResidentExecutor

    answering = _answering(options)
    # What a process holds on a graphics card its forks cannot use.
    executor = ForkingExecutor if options.accelerator == "cpu" else ResidentExecutor
    with ClientFolder.opened(options.state_dir) as folder:
        folder.log_here()
        client = Client(
            NodeSettings(
                server=options.server,
                ca=options.ca,
                key=options.key,
                secret=folder.secret,
                config={"partition-id": answering.own.client_id},
                poll_s=options.poll,
                log=folder.node_log,
                link=folder.link,
            ),
            last_id_path=folder.path / "node.json",
            say=_say,
            prepare=_prepare,
            make_executor=lambda between, tell: executor(
                make_app=answering.make_app,
                warm=answering.warm,
                tell=tell,
                limits=answering.fence.limits,
                patience_s=None if options.max_seconds is None else 2 * options.max_seconds,
                between=between,
            ),
        )
        signal.signal(signal.SIGTERM, _end)
        _say(f"client {answering.own.client_id} of {options.server}; logs are in {options.state_dir}")
        client.run()


def _answering(options: argparse.Namespace) -> Answering:
    """Check everything that can be checked before anything is started.

    Raises:
        ConfigError: a line for each problem.
    """
    from fedpeft.engines.deploy.answering import Answering

    problems: list[str] = []
    _tried(problems, lambda: _check_connection(options))
    _tried(problems, lambda: _check_accelerator(options.accelerator))
    client_id = _tried(problems, lambda: _client_id(options))
    fence = _tried(problems, lambda: _fence(options))
    own = _tried(problems, lambda: _own(options, 0 if client_id is None else client_id))
    if problems or own is None or fence is None:
        raise ConfigError(problems)
    return Answering(own=own, fence=fence)


def _fence(options: argparse.Namespace) -> Fence:
    from fedpeft.client.fence import DEFAULT_ALLOW, Fence

    return Fence(
        allow=(*DEFAULT_ALLOW, *options.allow),
        max_steps=options.max_steps,
        max_seconds=options.max_seconds,
        max_memory_mb=options.max_memory_mb,
        max_bytes=options.max_bytes,
        require_epsilon=options.require_epsilon,
    )


def _tried(problems: list[str], make: Callable[[], Made]) -> Made | None:
    """Return what a function makes; None where it raises, with its problems noted."""
    try:
        return make()
    except ConfigError as error:
        problems += error.problems
    except FedPeftError as error:
        problems.append(str(error))
    return None


def _check_connection(options: argparse.Namespace) -> None:
    from fedpeft.engines.deploy.folder import read_file
    from fedpeft.engines.deploy.keys import check_peer_certificate
    from fedpeft.engines.deploy.whereabouts import split_address

    host, _ = split_address(options.server)
    if options.poll <= 0:
        raise ConfigError(f"--poll must be above 0 seconds, got {options.poll:g}")
    if options.insecure:
        if host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(f"--insecure is for a server on this machine, got {options.server} (give --ca and --key)")
        if options.ca is not None or options.key is not None:
            raise ConfigError("--insecure and --ca or --key exclude each other (leave --insecure out)")
        return
    if options.ca is None or options.key is None:
        raise ConfigError("--ca and --key are needed: the server's operator has them (fedpeft server add-device NAME)")
    check_peer_certificate(read_file(options.ca), what=str(options.ca))


def _check_accelerator(name: str) -> None:
    if name != "cpu":
        from fedpeft.client.placing import check_build

        check_build(name)


def _client_id(options: argparse.Namespace) -> int:
    from fedpeft.engines.deploy.keys import read_device_key

    found = None if options.key is None else read_device_key(options.key).client_id
    if options.id is None and found is None:
        raise ConfigError("which client this is stands neither in the key nor in --id (set --id)")
    if None not in (options.id, found) and options.id != found:
        raise ConfigError(f"--id is {options.id}, the key is client {found}'s (leave --id out)")
    return options.id if found is None else found


def _own(options: argparse.Namespace, client_id: int) -> OwnData:
    from fedpeft.client.own import OwnData

    device, profile = _profile(options.device)
    return OwnData(
        path=str(options.data.absolute()),
        client_id=client_id,
        device=device,
        profile=profile,
        model=options.model,
        state_dir=str(options.state_dir.absolute()),
        accelerator=options.accelerator,
        max_epsilon=options.require_epsilon,
    )


def _profile(name: str | None) -> tuple[str, str]:
    """Return a device profile's name, and itself as JSON: the server predicts with it."""
    if name is None:
        return "unknown", ""
    from fedpeft.device_profiles.presets import load_profile

    profile = load_profile(name)
    return profile.name, json.dumps(profile.to_mapping())


def _prepare() -> None:
    """Import what every message needs, once; this process must keep to one thread."""
    began = time.monotonic()
    from fedpeft.engines.memory import freeze_heap, tame_memory

    tame_memory()
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import fedpeft.client.app
    import fedpeft.client.building  # noqa: F401

    torch.set_num_threads(1)
    freeze_heap()
    _say(f"torch is loaded ({time.monotonic() - began:.0f} s), waiting for a run")


def _say(line: str) -> None:
    print(f"fedpeft: {line}", flush=True)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Once is enough: what ends this process in order must not be interrupted.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(0)
