"""The first gradient as factors: by hand, and against the gradients that the weights themselves get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from torch import nn

from fedpeft.client.measure import gradient_factors, measure
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.types import Tensors
from fedpeft.methods.base import Method, Tunable
from fedpeft.methods.lora import LoRA
from fedpeft.methods.lora_sb import LoRASB
from fedpeft.methods.slora import SLoRA
from fedpeft.tasks.text_classification import TextClassification


class Squares:
    """Examples (x, t) with the loss 1/2 ||model(x) - t||^2."""

    def __init__(self, x: list[list[float]], t: list[list[float]]) -> None:
        self.x, self.t = torch.tensor(x).float(), torch.tensor(t).float()

    def collate(self, rows: np.ndarray) -> Mapping[str, torch.Tensor]:
        return {"x": self.x[rows], "t": self.t[rows]}

    def per_example_loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return 0.5 * (model(batch["x"]) - batch["t"]).square().sum(-1)


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.query(x)


def by_hand(method: Method) -> tuple[Tensors, float]:
    tunable = method.attach(OneLayer(), "freeze")
    task: Any = Squares(x=[[1, 0], [0, 2]], t=[[-2, 0], [0, 0]])
    return gradient_factors(tunable, task, np.arange(2), dtype="float32")


@pytest.mark.parametrize("kind", [LoRA, LoRASB, SLoRA])
def test_a_linear_regression_by_hand(kind: Any) -> None:
    """W = I. Example 1: x = (1, 0), residual (3, 0); example 2: x = (0, 2), residual (0, 2).

    G = 1/2 [[3, 0], [0, 0]] + 1/2 [[0, 0], [0, 4]] = diag(1.5, 2). Loss: 1/2 (9/2 + 4/2) = 3.25.
    """
    factors, loss = by_hand(kind(rank=2, target_modules=["query"]))
    b, a = (factors[f"base_model.model.query.lora_{f}.weight"] for f in "BA")
    assert np.allclose(b @ a, [[1.5, 0], [0, 2]], atol=1e-6)
    assert np.allclose(np.linalg.norm(b, axis=0), [2, 1.5], atol=1e-6)
    assert np.allclose(a @ a.T, np.eye(2), atol=1e-6)
    assert loss == pytest.approx(3.25)


@pytest.mark.parametrize("kind", [LoRA, LoRASB])
def test_rank_one_keeps_the_larger_direction(kind: Any) -> None:
    """Of diag(1.5, 2) the best change of rank 1 is diag(0, 2)."""
    factors, _ = by_hand(kind(rank=1, target_modules=["query"]))
    b, a = (factors[f"base_model.model.query.lora_{f}.weight"] for f in "BA")
    assert (b.shape, a.shape) == ((2, 1), (1, 2))
    assert np.allclose(b @ a, [[0, 0], [0, 2]], atol=1e-6)


def texts() -> TextClassification:
    """19 texts of 2 to 8 tokens, two labels: parts of unequal size."""
    return small_models.labelled_texts(19, shortest=2, longest=8, labels=2)


def through_the_weights(tunable: Tunable, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the gradients that torch gives the adapted weights, (out, in), all rows in one batch."""
    task, tensors = texts(), {}
    for pair in lora_pairs(tunable.shared):
        base = tunable.model.get_submodule(pair.module.removeprefix("base_model.model.")).get_base_layer()
        base.weight.requires_grad_(True)
        tensors[pair.module] = (base.weight, type(base).__name__ == "Conv1D")
    loss = task.per_example_loss(tunable.model, task.collate(rows)).mean()
    found = torch.autograd.grad(loss, [weight for weight, _ in tensors.values()])
    for weight, _ in tensors.values():
        weight.requires_grad_(False)
    return {
        module: (g.T if transposed else g).numpy()
        for (module, (_, transposed)), g in zip(tensors.items(), found, strict=True)
    }


@pytest.mark.parametrize("family", small_models.KINDS)
def test_it_is_the_weights_own_gradient(family: str) -> None:
    """Linear and Conv1D (GPT-2's c_attn, 32 x 96); at the full rank nothing is cut. float32 on both ways."""
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[family]
    tunable = LoRASB(rank=32, target_modules=targets).attach(small_models.model_of(family), "share")
    rows = np.arange(19)
    wanted = through_the_weights(tunable, rows)
    before = {key: value.detach().clone() for key, value in tunable.shared.items()}
    tunable.model.train()
    got, _ = gradient_factors(tunable, texts(), rows, dtype="float32")
    assert tunable.model.training
    assert set(got) == {key for pair in lora_pairs(tunable.shared) for key in (pair.a, pair.b)}
    for module, gradient in wanted.items():
        product = got[f"{module}.lora_B.weight"] @ got[f"{module}.lora_A.weight"]
        assert np.linalg.norm(gradient) > 0
        assert np.linalg.norm(product - gradient) < 1e-5 * np.linalg.norm(gradient)
    assert all(torch.equal(tunable.shared[key], value) for key, value in before.items())
    assert not any(p.requires_grad for name, p in tunable.model.named_parameters() if "base_layer" in name)


def test_a_bfloat16_base_gives_nearly_the_same() -> None:
    """bfloat16 has 8 bits: 2^-8 a rounding, and a few of them on the way through three layers."""
    gradients = []
    for dtype in ("float32", "bfloat16"):
        model = small_models.model_of("bert").to(getattr(torch, dtype))
        torch.manual_seed(0)
        tunable = LoRASB(rank=32, target_modules=["query"]).attach(model, "share")
        got, _ = gradient_factors(tunable, texts(), np.arange(19), dtype=dtype)
        name = lora_pairs(got)[0].module
        gradients.append(got[f"{name}.lora_B.weight"] @ got[f"{name}.lora_A.weight"])
    assert np.linalg.norm(gradients[1] - gradients[0]) < 0.1 * np.linalg.norm(gradients[0])


def test_no_more_than_64_examples_are_asked() -> None:
    """Which ones depends on the generator alone; the reply reports the loss and what it cost."""
    tunable = LoRASB(rank=4, target_modules=["query"]).attach(small_models.model_of("bert"), "share")
    rows = np.repeat(np.arange(19), 5)
    one, other = (
        measure("gradient", tunable, [], texts(), rows, dtype="float32", rng=np.random.default_rng(1)) for _ in "ab"
    )
    assert one.tensors is not None
    assert other.tensors is not None
    assert all(np.array_equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    assert one.passes == 64 / 8
    assert 0.3 < float(one.metrics["train-loss"]) < 2.0  # type: ignore[arg-type]
