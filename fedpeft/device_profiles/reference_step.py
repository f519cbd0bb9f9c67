"""A LoRA step of a small Llama, made on the spot: what share of its products' rate a machine trains at.

What a step moves in memory besides its products takes its time at the measured bandwidth. Of the rest, one size alone
cannot tell slow products from a fixed cost of each step, so two sizes are timed and both are solved for; a third one,
between them, checks what came out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.core.types import Work
from fedpeft.device_profiles.flops import StepFlops, measure_step_flops
from fedpeft.device_profiles.memory import measure_step_memory
from fedpeft.device_profiles.timing import Timing, best_of

if TYPE_CHECKING:
    from torch import nn

SMALL, MIDDLE, LARGE = (1, 32), (2, 64), (4, 128)
"""Examples and tokens of the timed steps."""
LAYERS = 4
VOCABULARY = 1000
RANK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceStep:
    """What the steps took, and what follows.

    Attributes:
        train_efficiency: FLOP/s of a step over those of a product, in (0, 1].
        step_overhead_ms: milliseconds of each step, whatever its size.
        seconds: of a step by (examples, tokens).
        flops: of a step by (examples, tokens).
        bytes_moved: in memory by a step, likewise, see ``StepMemory.moved_bytes``.
        gone_s: wall seconds in which this process did not run.
        wall_s: wall seconds of all timed steps.
    """

    train_efficiency: float
    step_overhead_ms: float
    seconds: Mapping[tuple[int, int], float]
    flops: Mapping[tuple[int, int], float]
    bytes_moved: Mapping[tuple[int, int], float]
    gone_s: float
    wall_s: float

    def work(self, size: tuple[int, int]) -> Work:
        """Return what a step of ``size`` = (examples, tokens) asks of a device."""
        return Work(flops=self.flops[size], bytes_down=0, bytes_up=0, num_steps=1, bytes_moved=self.bytes_moved[size])


def measure_reference_step(
    *, gflops: float, gb_per_s: float, budget_s: float, one_thread: bool = True
) -> ReferenceStep:
    """Time a float32 LoRA step (forward, backward, clipping, AdamW) of three sizes.

    Args:
        gflops: GFLOP/s of a float32 matrix product here.
        gb_per_s: memory bandwidth here.
        budget_s: wall seconds for all of it, about.
        one_thread: whether torch runs on one thread.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model("sdpa")
    flops = reference_flops()
    timings: dict[tuple[int, int], Timing] = {}
    for size in (SMALL, MIDDLE, LARGE):
        timings[size] = best_of(_step_of(model, *size), budget_s=budget_s / 3, one_thread=one_thread)
    seconds = {size: timing.best_s for size, timing in timings.items()}
    counted = {size: flops.step(*size) for size in seconds}
    moved = {size: _moved_bytes(*size) for size in seconds}
    small, large = ((counted[size], seconds[size] - moved[size] / (1e9 * gb_per_s)) for size in (SMALL, LARGE))
    efficiency, overhead_s = solve_step(small, large, gflops=gflops)
    return ReferenceStep(
        train_efficiency=efficiency,
        step_overhead_ms=overhead_s * 1e3,
        seconds=seconds,
        flops=counted,
        bytes_moved=moved,
        gone_s=sum(one.gone_s for one in timings.values()),
        wall_s=sum(one.wall_s for one in timings.values()),
    )


def reference_flops() -> StepFlops:
    """Return the FLOPs of the reference model's step."""
    return measure_step_flops(lambda: _model("eager"))


def _moved_bytes(batch_size: int, seq_len: int) -> float:
    return measure_step_memory(lambda: _model("sdpa"), batch_size=batch_size, seq_len=seq_len).moved_bytes


def solve_step(small: tuple[float, float], large: tuple[float, float], *, gflops: float) -> tuple[float, float]:
    """Return training efficiency and seconds of overhead from two steps of (FLOPs, seconds without memory's share).

        seconds = flops / (1e9 * gflops * efficiency) + overhead,   0 < efficiency <= 1,   overhead >= 0

    Where the line through both leaves these bounds, the bound is taken and the other unknown follows from the large
    step, the less noisy of the two.

    Args:
        small: FLOPs and seconds of one step.
        large: of another one, with more FLOPs.
        gflops: GFLOP/s of a matrix product.

    Example:
        >>> solve_step((1e9, 0.012), (11e9, 0.112), gflops=200.0)
        (0.5, 0.002)
    """
    (least, quick_s), (most, slow_s) = ((flops / (1e9 * gflops), seconds) for flops, seconds in (small, large))
    slope = (slow_s - quick_s) / (most - least)
    overhead_s = quick_s - slope * least
    if slope < 1.0:
        slope, overhead_s = 1.0, slow_s - most
    if overhead_s < 0.0:
        slope, overhead_s = max(1.0, slow_s / most), 0.0
    return round(1 / slope, 6), round(overhead_s, 9)


def _model(attention: str) -> Any:
    """Return a Llama with new weights and LoRA r8 on all its queries and values, those alone trainable."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        use_cache=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def _step_of(model: nn.Module, batch_size: int, seq_len: int) -> Callable[[], object]:
    import torch
    from torch.nn.functional import cross_entropy

    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (batch_size, seq_len), generator=generator)
    mask = torch.ones_like(ids)
    # Without any padding transformers would leave the mask out, which real batches do not let it.
    mask[0, -1] = 0
    model.train()

    def step() -> None:
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
