"""Seconds and memory of a round on a real device that has nothing to do: Flower's SuperNode, and ours.

    python benchmarks/deploy_floor.py                 5 rounds each, with torch, transformers and peft imported
    python benchmarks/deploy_floor.py --imports ''    the same for an app that imports nothing

Both answer the same ServerApp through a SuperLink on the loopback, without TLS, one after the other in one go. The
first round is told apart: in it ours has everything loaded too. Memory is the proportional set size of the device's
processes. On a machine that is starved of CPU Flower starts its ServerApp over and over: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from light_federation import BIN, Federation, environment, federation  # noqa: E402

from fedpeft.engines.deploy.node import Node, NodeSettings, free_port  # noqa: E402
from fedpeft.engines.deploy.parenthood import die_with  # noqa: E402
from fedpeft.engines.memory import tree_mb  # noqa: E402

IMPORTS = "torch,transformers,peft"


class Enough(Exception):
    """All rounds are answered."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", default=IMPORTS, help="modules that the ClientApp needs (%(default)s)")
    parser.add_argument("--serve", nargs=3, metavar=("ADDRESS", "FOLDER", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [name for name in options.imports.split(",") if name]
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]), int(options.serve[2]), names)
        return
    print("| device | first round (s) | later rounds, median (s) | peak memory (MB) |")
    print("|---|---|---|---|")
    for label, start in (("flower-supernode", stock), ("fedpeft client", ours)):
        first, later, peak = measure(start, options.rounds, names)
        print(f"| {label} | {first:.1f} | {later:.1f} | {peak:.0f} |", flush=True)


def measure(
    start: Callable[[Federation, int, list[str]], subprocess.Popen[bytes]], rounds: int, names: list[str]
) -> tuple[float, float, float]:
    """Return the seconds of the first and of the median later round, and the device's peak MB."""
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), free_port()) as server:
        server.submit(rounds=rounds, config={"any": 1}, imports=names)
        device = start(server, rounds, names)
        peak, done = [0.0], threading.Event()
        watcher = threading.Thread(target=watch, args=(device.pid, peak, done))
        watcher.start()
        try:
            rows = server.wait_for(rounds, 900)
        finally:
            done.set()
            watcher.join()
            device.terminate()
            device.wait()
    bad = [row["reason"] for row in rows if "reason" in row]
    if bad:
        raise SystemExit(f"rounds failed: {bad}")
    seconds = [row["seconds"] for row in rows]
    return seconds[0], statistics.median(seconds[1:]), peak[0]


def stock(server: Federation, rounds: int, names: list[str]) -> subprocess.Popen[bytes]:
    """Start Flower's SuperNode as its users do."""
    dies = partial(die_with, os.getpid())
    command = [BIN / "flower-supernode", "--insecure", "--superlink", server.address, "--port", str(free_port())]
    with (server.folder / "device.log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment(server.folder / "device"), stdout=log, stderr=log, preexec_fn=dies
        )


def ours(server: Federation, rounds: int, names: list[str]) -> subprocess.Popen[bytes]:
    """Start our node and a warm process with an app that does as little as the stock one."""
    dies = partial(die_with, os.getpid())
    command: list[Any] = [sys.executable, __file__, "--imports", ",".join(names), "--serve", server.address]
    with (server.folder / "device.log").open("wb") as log:
        return subprocess.Popen(
            [*command, server.folder, str(rounds)],
            env=environment(server.folder / "device"),
            stdout=log,
            stderr=log,
            preexec_fn=dies,
        )


def serve(address: str, folder: Path, rounds: int, names: list[str]) -> None:
    """Be our device until all rounds are answered."""
    import httpx

    from fedpeft.engines.deploy.executor import ForkingExecutor
    from fedpeft.engines.deploy.telling import Event
    from fedpeft.engines.flower_private_device import run_superexec
    from fedpeft.engines.memory import freeze_heap, tame_memory

    tame_memory()
    for name in names:
        __import__(name)
    freeze_heap()
    secret = folder / "secret"
    secret.write_bytes(os.urandom(32))
    node = Node(NodeSettings(server=address, ca=None, key=None, secret=secret, config={}, log=folder / "node.log"))
    answered: list[Event] = []

    def between() -> None:
        if sum(event["kind"] == "done" for event in answered) >= rounds:
            raise Enough

    executor = ForkingExecutor(make_app=idle_app, warm=lambda _: None, tell=answered.append, between=between)
    try:
        while not node.events():
            threading.Event().wait(0.05)
        run_superexec(executor, address=node.address, secret=secret.read_bytes(), poll_s=0.1)
    except (Enough, httpx.HTTPError) as ending:
        print(f"ended: {ending!r}", flush=True)
        # The last reply may still be on its way from the node.
        threading.Event().wait(10)
    finally:
        executor.end()
        node.stop()


def idle_app() -> Any:
    """Return a ClientApp that answers at once."""
    from flwr.app import Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"ours": 1})}), reply_to=message)

    return app


def watch(pid: int, peak: list[float], done: threading.Event) -> None:
    """Note the most memory that a process and its descendants ever hold."""
    import psutil

    while not done.wait(0.3):
        try:
            process = psutil.Process(pid)
            pids = [pid, *(child.pid for child in process.children(recursive=True))]
        except psutil.NoSuchProcess:
            continue
        peak[0] = max(peak[0], tree_mb(pids))


if __name__ == "__main__":
    main()
