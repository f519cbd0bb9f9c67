"""LoRA-SB: what it computes, what trains, and the adapter that plain peft loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from fedpeft.core.errors import ConfigError
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.traits import CORE
from fedpeft.methods.base import Tunable, extract_tensors, load_tensors
from fedpeft.methods.lora_sb import LoRASB

MODULE = "base_model.model.transformer.h.1.attn.c_attn"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.write(tmp_path_factory.mktemp("sb") / "gpt2", "gpt2")


def attached(folder: str, rank: int = 3, alpha: float = 6, head: str = "share") -> Tunable:
    torch.manual_seed(0)
    return LoRASB(rank=rank, alpha=alpha).attach(tiny.load(folder), head)


def test_it_starts_orthonormal_and_at_zero(folder: str) -> None:
    """c_attn is 32 -> 96: A (3, 32) with A A^T = I, B (96, 3) with B^T B = I, R (3, 3) zero; R alone may train."""
    shared = extract_tensors(attached(folder).shared)
    a, r, b = (shared[f"{MODULE}.lora_{f}.weight"] for f in "ARB")
    assert (a.shape, r.shape, b.shape) == ((3, 32), (3, 3), (96, 3))
    assert np.allclose(a @ a.T, np.eye(3), atol=1e-5)
    assert np.allclose(b.T @ b, np.eye(3), atol=1e-5)
    assert not r.any()
    assert LoRASB().traits == {CORE}
    trains = {key for key, value in attached(folder).shared.items() if value.requires_grad}
    assert trains == {key for key in shared if "lora_A" not in key and "lora_B" not in key}


def test_it_adds_scaling_b_r_a(folder: str) -> None:
    """W x + 2 B (R (A x)) by numpy; alpha 6 / rank 3 = 2. The product is not symmetric in B, R and A."""
    tunable = attached(folder)
    rng = np.random.default_rng(0)
    values = {key: rng.normal(size=value.shape).astype(np.float32) for key, value in tunable.shared.items()}
    load_tensors(tunable.shared, values)
    layer = tunable.model.get_submodule(MODULE.removeprefix("base_model.model."))
    x = rng.normal(size=(5, 32)).astype(np.float32)
    got = layer(torch.from_numpy(x)).detach().numpy()
    a, r, b = (values[f"{MODULE}.lora_{f}.weight"].astype(np.float64) for f in "ARB")
    base = layer.base_layer(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(got, base + 2 * x @ (b @ r @ a).T, rtol=1e-4, atol=1e-3)


def test_no_order_makes_the_factors_train(folder: str) -> None:
    """Even asked for gradients A and B get none; R gets s B^T G A^T, which is not zero where R is."""
    tunable = attached(folder)
    for value in tunable.shared.values():
        value.requires_grad_(True)
    tunable.model(**tiny.texts()).logits.sum().backward()
    gradients = {key: value.grad for key, value in tunable.shared.items()}
    for pair in lora_pairs(tunable.shared):
        assert gradients[pair.a] is None
        assert gradients[pair.b] is None
        core = gradients[f"{pair.module}.lora_R.weight"]
        assert core is not None
        assert core.abs().max() > 0


def test_plain_peft_loads_the_saved_adapter(folder: str, tmp_path: Path) -> None:
    """An adapter of peft's own kind, with B R in place of B."""
    from peft import PeftModel

    tunable = attached(folder)
    tiny.shift(tunable.shared.values())
    wanted = tunable.model(**tiny.texts()).logits
    tensors, heads = extract_tensors(tunable.shared), tunable.head_keys
    LoRASB(rank=3, alpha=6).save(tensors, tmp_path, base_model=folder, head_keys=heads)
    entries = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (entries["peft_type"], entries["r"], entries["lora_alpha"]) == ("LORA", 3, 6)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not [key for key in saved if "lora_R" in key]
    b, r = (tensors[f"{MODULE}.lora_{f}.weight"] for f in "BR")
    assert np.allclose(saved[f"{MODULE}.lora_B.weight"], b @ r, atol=1e-5)
    loaded = PeftModel.from_pretrained(tiny.load(folder), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**tiny.texts()).logits, wanted, rtol=1e-4, atol=1e-4)


def test_it_refuses_what_lora_refuses(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.1024, got 0"):
        LoRASB(rank=0)
    with pytest.raises(ConfigError, match="rank 33 is above the smallest target's size 32"):
        attached(folder, rank=33)
    with pytest.raises(TypeError):
        LoRASB(dora=True)  # type: ignore[call-arg]
