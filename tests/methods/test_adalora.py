"""AdaLoRA's three factors and the pull towards orthogonality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy as maker
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.methods.adalora import AdaLoRA, orthogonality_gradient
from fedpeft.methods.base import extract_tensors, load_tensors
from fedpeft.tasks.models import load_classifier

QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("adalora") / "model"))


def classifier(folder: str) -> nn.Module:
    return load_classifier(folder, num_labels=2, dtype="float32", dropout=0.0, seed=0)


def test_the_update_by_hand(folder: str) -> None:
    """W x + (alpha / rank) P diag(lambda) Q x in float64; peft divides by rank + 1e-5, hence the tolerance."""
    method = AdaLoRA(rank=2, alpha=6, target_modules=["query"])
    tunable = method.attach(classifier(folder), "freeze")
    rng = np.random.default_rng(0)
    load_tensors(tunable.shared, {k: rng.normal(size=v.shape).astype(np.float32) for k, v in tunable.shared.items()})
    parts = {k.removeprefix(QUERY): v.astype(np.float64) for k, v in extract_tensors(tunable.shared).items()}
    q, e, p = (parts[name] for name in ("lora_A", "lora_E", "lora_B"))
    assert (q.shape, e.shape, p.shape) == ((2, 32), (2, 1), (32, 2))
    query = tunable.model.bert.encoder.layer[1].attention.self.query
    x = rng.normal(size=(5, 32)).astype(np.float32)
    base = x @ query.base_layer.weight.detach().numpy().T + query.base_layer.bias.detach().numpy()
    expected = base + 3 * x @ (p @ np.diag(e[:, 0]) @ q).T
    np.testing.assert_allclose(query(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_pulls_gradient_by_hand() -> None:
    """Q = [[2, 0], [0, 1]]: Q Q^T - I = diag(3, 0) of norm 3, 2 diag(3, 0) Q / 3 = [[4, 0], [0, 0]]."""
    q = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert orthogonality_gradient(q).tolist() == [[4.0, 0.0], [0.0, 0.0]]
    assert orthogonality_gradient(torch.eye(2, 3)).tolist() == [[0.0] * 3] * 2


def test_the_pull_is_the_derivative_of_hf_pefts_regulariser(folder: str) -> None:
    """Gradients with the pull less those without are autograd's of weight * mean ||P^T P - I||_F."""
    gradients = {}
    for weight in (0.0, 0.7):
        torch.manual_seed(0)
        tunable = AdaLoRA(rank=2, orth_reg_weight=weight).attach(classifier(folder), "freeze")
        tunable.model(input_ids=torch.arange(4, 24).view(2, 10)).logits.square().sum().backward()
        gradients[weight] = {key: value.grad for key, value in tunable.shared.items()}
    factors = {k: v.detach().clone().requires_grad_() for k, v in tunable.shared.items() if "lora_E" not in k}
    norms = [
        torch.linalg.norm((v @ v.T if k.endswith("lora_A") else v.T @ v) - torch.eye(2)) for k, v in factors.items()
    ]
    (0.7 * torch.stack(norms).mean()).backward()
    assert len(factors) == 8
    for key, value in gradients[0.7].items():
        pull = value - gradients[0.0][key]
        expected = factors[key].grad if key in factors else torch.zeros_like(pull)
        torch.testing.assert_close(pull, expected, rtol=1e-4, atol=1e-6)


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        AdaLoRA(rank=0, alpha=-1, orth_reg_weight=-0.1)
    assert [line.split()[0] for line in caught.value.problems] == ["rank", "alpha", "orth_reg_weight"]
    with pytest.raises(ConfigError, match="orth_reg_weight must be >= 0, got 'x'"):
        AdaLoRA(orth_reg_weight="x")  # type: ignore[arg-type]


def test_a_rank_above_a_target_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="rank 33 is above the smallest target's size 32"):
        AdaLoRA(rank=33).attach(classifier(folder), "share")
