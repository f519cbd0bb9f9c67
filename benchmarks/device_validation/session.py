"""One device under limits: started, warmed up, limited, asked, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import Message

from benchmarks.device_validation.limits import DutyCycle, GroupQuota, Namespace, Quota
from benchmarks.device_validation.link import Relay
from benchmarks.device_validation.plan import Setup, overrides_of
from benchmarks.device_validation.transport import DEVICE_NODE, MessageServer, packed, unpacked
from fedpeft import config as cfg
from fedpeft.cli.launch import new_config
from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.core import wire
from fedpeft.core.orders import Orders
from fedpeft.core.types import Work

ROOT = Path(__file__).resolve().parents[2]
OFF_QUOTA = 0.02
"""A run whose process got another share of a core than it was given, by more than this, says nothing."""
TRIES = 4
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # pyarrow, which reads the texts, would reserve a gigabyte of address space that it never touches.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


@dataclass(frozen=True, kw_only=True)
class Tools:
    """How limits are enforced.

    Attributes:
        namespace: of the device, None for the relay's own token bucket.
        groups: whether the kernel's quota limits the processor, else stopping and continuing.
        folder: for configs, models and texts.
    """

    namespace: Namespace | None
    groups: bool
    folder: Path

    def quota(self, pid: int, share: float) -> Quota:
        """Limit a process to a share of one core."""
        return GroupQuota(pid, share) if self.groups else DutyCycle(pid, share)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One round of a device: what it was asked, and the seconds that it took.

    Attributes:
        work: what the simulator is told of it.
        down_s, compute_s, up_s: seconds of each leg.
        cpu_s: CPU seconds in the middle leg.
        discarded: runs before it that did not get their share of a core.
    """

    work: Work
    down_s: float
    compute_s: float
    up_s: float
    cpu_s: float
    discarded: int = 0

    @property
    def total_s(self) -> float:
        """From the request for a message to the end of the reply."""
        return self.down_s + self.compute_s + self.up_s


@dataclass(kw_only=True)
class DeviceSession:
    """A device's process and what it is asked over its connection."""

    setup: Setup
    tools: Tools
    runtime: Runtime
    server: MessageServer
    relay: Relay
    process: subprocess.Popen[str]
    rounds: int = field(default=0, init=False)

    def message(self, orders: Orders | None = None) -> Message:
        """Return the message that asks the device to train."""
        self.rounds += 1
        initial, head = self.runtime.initial, list(self.runtime.tunable.head_keys)
        sent = {key: initial[key] for key in self.setup.sends(list(initial), head)}
        entries = (orders or Orders()).entries()
        content = wire.instruction(wire.encode(sent), self.rounds, self.runtime.identity, entries)
        return Message(content, dst_node_id=DEVICE_NODE, message_type="train")

    def order(self, do: str, **told: Any) -> dict[str, Any]:
        """Tell the process to do something and return its answer."""
        assert self.process.stdin, "its input is a pipe"
        self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the process's next answer."""
        assert self.process.stdout, "its output is a pipe"
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the device's process has ended; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @cached_property
    def log(self) -> Path:
        """Where the process's own output goes."""
        return self.tools.folder / "device.log"

    def exchange(self, orders: Orders | None = None) -> Exchange:
        """Have the device take part in one round, under whatever limits there are."""
        message = self.message(orders)
        self.server.put(packed(message))
        legs = self.order("round")
        reply = unpacked(self.server.reply())
        if reply.has_error():
            raise RuntimeError(f"{self.setup.name}: {reply.error.reason}")
        return Exchange(work=self._work(message, reply), **legs)

    def limited(self, orders: Orders | None = None) -> Exchange:
        """Have the device take part in one round under the setup's limits.

        Raises:
            RuntimeError: it did not get its share of a core, again and again: the machine is too busy.
        """
        setup, seen = self.setup, list[float]()
        self._limit_link()
        quota = self.tools.quota(self.process.pid, setup.share)
        try:
            for discarded in range(TRIES):
                found = self.exchange(orders)
                seen.append(round(found.cpu_s / found.compute_s / setup.share, 3))
                if abs(seen[-1] - 1) <= OFF_QUOTA:
                    return replace(found, discarded=discarded)
        finally:
            quota.close()
        raise RuntimeError(f"{setup.name}: {TRIES} runs got {seen} of their share of a core: the machine is too busy")

    def payload_efficiency(self, num_bytes: int) -> float:
        """Return the share of the link's rates that carries ``num_bytes`` there and back."""
        self._limit_link()
        self.server.put(os.urandom(num_bytes))
        legs = self.order("echo")
        self.server.reply()
        room = 1e6 * (legs["down_s"] * self.setup.down_mbps + legs["up_s"] * self.setup.up_mbps)
        return min(1.0, 16 * num_bytes / room)

    def _limit_link(self) -> None:
        setup, namespace = self.setup, self.tools.namespace
        rates = {"down_mbps": setup.down_mbps, "up_mbps": setup.up_mbps}
        if namespace and setup.down_mbps:
            namespace.limit(**rates)
        self.relay.limit(**(dict.fromkeys(rates, 0.0) if namespace else rates), rtt_ms=setup.rtt_ms)

    def _work(self, message: Message, reply: Message) -> Work:
        """Return what the simulator's grid makes of a message and its reply."""
        metrics, runtime = reply.content.metric_records[wire.METRICS], self.runtime
        orders = Orders.read(wire.config_of(message.content))
        trained = orders.trains(message.content.array_records[wire.ARRAYS], runtime.initial)
        batch_size = orders.batch_size or self.setup.batch_size
        checkpointing = orders.checkpointing or runtime.settings.gradient_checkpointing
        steps = int(metrics["train-steps"])  # type: ignore[arg-type]
        length = runtime.text_length(0, "train", wire.round_of(message.content), orders.batch_size)
        usual, most = (
            runtime.step_memory(0, trained, batch_size, tokens, checkpointing)
            for tokens in (length, self.setup.longest)
        )
        return Work(
            flops=float(metrics["train-flops"]),  # type: ignore[arg-type]
            bytes_down=wire.content_bytes(message.content),
            bytes_up=wire.content_bytes(reply.content),
            dtype=runtime.dtype,
            num_steps=steps,
            bytes_moved=steps * usual.moved_bytes,
            peak_memory_bytes=round(most.process_bytes),
        )


@contextmanager
def device(setup: Setup, tools: Tools, *, compact: bool = False) -> Iterator[DeviceSession]:
    """Start a device, unlimited, and end it at the end.

    Args:
        setup: what it is asked to do.
        tools: how it will be limited.
        compact: whether its allocator gives memory back at once.
    """
    config = new_config({**cfg.compose(overrides_of(setup, tools.folder)), "run_dir": str(tools.folder / "run")})
    told = {"config": cfg.to_json(config), "compact": compact}
    with ExitStack() as stack:
        server = MessageServer()
        stack.callback(server.close)
        relay = Relay(tools.namespace.host if tools.namespace else "127.0.0.1", server.port)
        stack.callback(relay.close)
        if tools.namespace:
            tools.namespace.free()
        told["address"] = f"{tools.namespace.host if tools.namespace else '127.0.0.1'}:{relay.port}"
        path = tools.folder / "device.json"
        path.write_text(json.dumps(told))
        log = stack.enter_context((tools.folder / "device.log").open("w"))
        process = subprocess.Popen(
            [*(tools.namespace.prefix if tools.namespace else []), sys.executable, "-m", f"{__package__}.device", path],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        stack.callback(_end, process)
        runtime = build_runtime(config)
        session = DeviceSession(setup=setup, tools=tools, runtime=runtime, server=server, relay=relay, process=process)
        session.answer()
        yield session


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
