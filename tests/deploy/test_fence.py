"""An operator's conditions hold against what a server asks for."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft.client.fence import Fence, caps_memory
from fedpeft.core.errors import ConfigError, EngineError

LORA = {"_target_": "fedpeft.methods.lora.LoRA"}
EXAMPLE = {"_target_": "fedpeft.privacy.example_level.ExampleLevel", "epsilon": 8.0, "delta": 1e-5}
LOCAL = {"_target_": "fedpeft.privacy.local.Local", "epsilon": 8.0, "delta": 1e-5}


def config(**parts: Any) -> dict[str, Any]:
    client = {"local_steps": 16, "local_epochs": 1, "batch_size": 4}
    return {"method": LORA, "client": client, "privacy": {"name": "none"}, **parts}


def refused(fence: Fence, given: dict[str, Any], **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        fence.check(given, **more)
    return caught.value.problems


def test_a_real_config_passes_a_fence_that_says_nothing(toy_config: Callable[..., dict[str, Any]]) -> None:
    Fence().check(toy_config())
    Fence(require_epsilon=8).check(toy_config("privacy=example_level"))
    Fence(require_epsilon=8).check(toy_config("privacy=local"))
    assert "got ClientLevel" in refused(Fence(require_epsilon=8), toy_config("privacy=client_level"))[0]
    assert "got none" in refused(Fence(require_epsilon=8), toy_config())[0]


@pytest.mark.parametrize(
    "part",
    [
        {"method": {"_target_": "os.system", "command": "true"}},
        {"codec": {"_target_": "fedpeft.codecs.chain.Chain", "parts": [{"_target_": "subprocess.Popen"}]}},
        {"method": {"_target_": "fedpeft.core.paths.os.getpid"}},
        {"method": {"_target_": "fedpeft.methods.lora.LoRA", "rank": "${oc.env:HOME}"}},
        {"fleet": {"_target_": "elsewhere.Fleet"}},
    ],
)
def test_what_is_not_allowed_is_named(part: dict[str, Any]) -> None:
    assert len(refused(Fence(), config(**part))) == 1


def test_an_operator_may_allow_more() -> None:
    part = {"codec": {"_target_": "collections.OrderedDict"}}
    assert refused(Fence(), config(**part))
    Fence(allow=("fedpeft.methods.", "collections.")).check(config(**part))


def test_what_the_server_alone_builds_is_not_looked_at() -> None:
    Fence().check(config(strategy={"_target_": "somewhere.Strategy"}))


def test_steps_are_capped_however_they_are_counted() -> None:
    """Two epochs of ten examples in batches of four are 2 ceil(10 / 4) = 6 steps."""
    assert refused(Fence(max_steps=15), config()) == ["client.local_steps is 16, this device allows 15 (--max-steps)"]
    Fence(max_steps=16).check(config())
    epochs = config(client={"local_steps": None, "local_epochs": 2, "batch_size": 4})
    Fence(max_steps=6).check(epochs, num_examples=10)
    assert "takes 6 steps" in refused(Fence(max_steps=5), epochs, num_examples=10)[0]
    Fence(max_steps=5).check(epochs)
    assert refused(Fence(max_steps=5), config(client="nonsense"))


@pytest.mark.parametrize(
    "level",
    [
        {**EXAMPLE, "epsilon": 8.1},
        {**EXAMPLE, "epsilon": None, "noise_multiplier": 10.0},
        {**EXAMPLE, "epsilon": True},
        {**EXAMPLE, "epsilon": float("nan")},
        {**EXAMPLE, "delta": 0.5},
        {**EXAMPLE, "tell_evaluations": True},
        {**LOCAL, "epsilon": 1e9},
        {**LOCAL, "delta": None},
        {"_target_": "fedpeft.privacy.client_level.ClientLevel", "epsilon": 0.1, "delta": 1e-9},
        {"name": "none"},
        None,
    ],
)
def test_privacy_below_the_demand_is_refused(level: Any) -> None:
    problems = refused(Fence(require_epsilon=8), config(privacy=level))
    assert len(problems) == 1 and "epsilon <= 8" in problems[0]


@pytest.mark.parametrize("level", [EXAMPLE, LOCAL, {**EXAMPLE, "epsilon": 0.5}])
def test_privacy_that_meets_the_demand_passes(level: dict[str, Any]) -> None:
    Fence(require_epsilon=8).check(config(privacy=level))


def test_all_problems_come_together() -> None:
    given = config(method={"_target_": "os.system"}, codec={"_target_": "os.popen"})
    assert len(refused(Fence(max_steps=1, require_epsilon=1), given)) == 4


def test_bytes_can_only_be_lowered() -> None:
    assert [Fence(max_bytes=100).bounded(n) for n in (99, 101)] == [99, 100]
    assert Fence().bounded(7) == 7


@pytest.mark.parametrize("given", [{"max_steps": 0}, {"max_seconds": -1.0}, {"allow": ("",)}, {"max_delta": 1.0}])
def test_conditions_have_ranges(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Fence(**given)


def test_seconds_end_by_one_line_and_the_alarm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"longer than the 0\.2 s"), Fence(max_seconds=0.2).limits():
        time.sleep(10)
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.skipif(not caps_memory(), reason="this system keeps no limit on private memory")
def test_memory_ends_by_one_line_and_the_limit_is_put_back() -> None:
    import torch

    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    fence = Fence(max_memory_mb=held / 1e6 + 200)
    with fence.limits():
        small = torch.zeros(10_000_000)
    assert small.sum() == 0
    for allocate in (lambda: torch.zeros(1_000_000_000), lambda: bytearray(4_000_000_000)):
        with pytest.raises(EngineError, match="out of memory: this device allows"), fence.limits():
            allocate()
    with pytest.raises(RuntimeError, match="other"), fence.limits():
        raise RuntimeError("other")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
