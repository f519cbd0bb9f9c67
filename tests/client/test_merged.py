"""Factors that join the frozen base for a round, ranks that change under a live model, and what a message may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fedpeft.client.fitting import at_rank, fit, merged, payload_spec
from fedpeft.core.errors import WireError
from fedpeft.core.orders import MERGE, Orders
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Tunable, extract_tensors
from fedpeft.methods.lora import LoRA

LAYOUTS = ["bert", "gpt2"]
"""Linear weights lie (out, in), GPT-2's Conv1D weights (in, out)."""


def tunable(folder: Path, family: str, dtype: str = "float32") -> Tunable:
    base = tiny.load(tiny.write(folder, family), dtype=dtype)
    return LoRA(rank=3, alpha=6, ranks={"small": 1}).attach(base, "share")


def noise(tensors: Tensors, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {key: (0.3 * rng.normal(size=value.shape)).astype(np.float32) for key, value in tensors.items()}


def logits(tuned: Tunable) -> torch.Tensor:
    tuned.model.eval()
    with torch.inference_mode():
        return tuned.model(**tiny.texts()).logits


@pytest.mark.parametrize("family", LAYOUTS)
def test_merged_factors_do_what_the_same_factors_beside_the_weight_do(family: str, tmp_path: Path) -> None:
    """W0 + s B A beside the weight equals W0 + (s B) A merged into it, in either layout; afterwards W0 is back."""
    tuned = tunable(tmp_path, family)
    initial = extract_tensors(tuned.shared)
    factors = noise(initial)
    head = {key: value for key, value in initial.items() if "lora" not in key}
    fit(tuned, {**factors, **head}, Orders(), initial, {})
    beside = logits(tuned)
    fit(tuned, initial, Orders(), initial, {})
    plain = logits(tuned)
    payload = dict(initial)
    for pair in lora_pairs(factors):
        payload |= {MERGE + pair.a: factors[pair.a], MERGE + pair.b: np.float32(2.0) * factors[pair.b]}
    before = {name: value.clone() for name, value in tuned.model.named_parameters()}
    pointers = {name: value.data_ptr() for name, value in tuned.model.named_parameters()}
    with merged(tuned, payload):
        torch.testing.assert_close(logits(tuned), beside, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, beside, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in tuned.model.named_parameters())
    assert pointers == {name: value.data_ptr() for name, value in tuned.model.named_parameters()}


def test_a_bfloat16_base_does_not_swallow_small_changes(tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits: 1e-4 added to a weight near 0.5 would be lost, the float32 sum keeps it."""
    tuned = tunable(tmp_path, "bert", "bfloat16")
    pair = lora_pairs(tuned.shared)[0]
    weight = tuned.model.get_submodule(pair.module.removeprefix("base_model.model.")).get_base_layer().weight
    with torch.no_grad():
        weight.fill_(0.5)
    payload = {MERGE + pair.a: np.full((1, 32), 1e-2, np.float32), MERGE + pair.b: np.full((32, 1), 1e-2, np.float32)}
    with merged(tuned, payload):
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.detach(), torch.full((32, 32), 0.5001))
    assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_smaller_rank_has_its_own_scaling(family: str, tmp_path: Path) -> None:
    """At rank 1 the scaling is 6 / 1: the same factors padded with zeros to rank 3 need B three times as large."""
    tuned = tunable(tmp_path, family)
    initial = extract_tensors(tuned.shared)
    factors = at_rank(noise(initial), 1)
    fitted = fit(tuned, factors, Orders(rank=1, scaling=6.0), initial, {})
    small = logits(tuned)
    assert {tuned.shared[pair.a].shape[0] for pair in lora_pairs(factors)} == {1}
    assert sorted(fitted.trained) == sorted(initial)
    padded = {key: np.zeros_like(value) if "lora" in key else factors[key] for key, value in initial.items()}
    for pair in lora_pairs(factors):
        padded[pair.a][:1], padded[pair.b][:, :1] = factors[pair.a], 3 * factors[pair.b]
    fit(tuned, padded, Orders(), initial, {})
    torch.testing.assert_close(logits(tuned), small, rtol=1e-5, atol=1e-5)


def test_gradients_reach_resized_factors(tmp_path: Path) -> None:
    tuned = tunable(tmp_path, "bert")
    initial = extract_tensors(tuned.shared)
    fit(tuned, at_rank(noise(initial), 2), Orders(rank=2, scaling=3.0, freeze=("lora_A",)), initial, {})
    tuned.model(**tiny.texts()).logits.sum().backward()
    for pair in lora_pairs(initial):
        assert tuned.shared[pair.a].grad is None
        assert tuned.shared[pair.b].grad is not None
        assert tuned.shared[pair.b].grad.shape == (initial[pair.b].shape[0], 2)


def spec_error(initial: Tensors, orders: Orders, **shapes: Any) -> str:
    with pytest.raises(WireError) as caught:
        payload_spec(orders, {key.replace("__", "."): shape for key, shape in shapes.items()}, initial)
    return str(caught.value)


def test_a_message_holds_what_fits(tmp_path: Path) -> None:
    initial = {"m.lora_A.weight": np.zeros((3, 4), np.float32), "m.lora_B.weight": np.zeros((5, 3), np.float32)}
    both = {"merge.m.lora_A.weight": (7, 4), "merge.m.lora_B.weight": (5, 7)}
    spec = payload_spec(Orders(rank=2), {"m.lora_A.weight": (0,), **both}, initial)
    assert {key: one.shape for key, one in spec.items()} == {"m.lora_A.weight": (2, 4), **both}
    assert "rank must be at most 3" in spec_error(initial, Orders(rank=4), m__lora_A__weight=(4, 4))
    assert "ranks 7 and 6" in spec_error(
        initial, Orders(), m__lora_A__weight=(3, 4), merge__m__lora_A__weight=(7, 4), merge__m__lora_B__weight=(5, 6)
    )
    assert "cannot be merged" in spec_error(
        initial, Orders(), m__lora_A__weight=(3, 4), merge__m__lora_A__weight=(2**16, 4)
    )
    assert "no tensor of this run's model" in spec_error(initial, Orders(), **{})
    assert payload_spec(Orders(keep=("*",)), {}, initial) == {}
