"""Compacter: sums of Kronecker products, and one set of matrices for all layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy as maker
from safetensors.numpy import load_file
from torch import nn

from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.flops import measure_step_flops
from fedpeft.methods.base import extract_tensors
from fedpeft.methods.compacter import Compacter
from fedpeft.tasks.models import load_classifier

RULE = "base_model.model.compacter_rule"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("compacter") / "model"))


def classifier(folder: str) -> nn.Module:
    return load_classifier(folder, num_labels=2, dtype="float32", dropout=0.0, seed=0)


def projections(model: nn.Module) -> list[nn.Module]:
    from fedpeft.methods.peft_tuners import PHMLinear

    return [module for module in model.modules() if isinstance(module, PHMLinear)]


def test_the_weight_by_hand() -> None:
    """n = 2, four features in, two out, rank 1.

    A_1 = (1 0; 0 2), s_1 t_1 = 2 (1 3) = (2 6):   kron = (2 6  0 0;  0 0 4 12)
    A_2 = (0 1; 1 0), s_2 t_2 = 1 (-1 0) = (-1 0): kron = (0 0 -1 0; -1 0 0  0)
    W = (2 6 -1 0; -1 0 4 12), and W (1 1 1 1)' + (1 0)' = (8 15)'.
    """
    from fedpeft.methods.peft_tuners import PHMLinear

    rule = nn.Parameter(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]]))
    layer = PHMLinear(4, 2, rule)
    with torch.no_grad():
        layer.left.copy_(torch.tensor([[[2.0]], [[1.0]]]))
        layer.right.copy_(torch.tensor([[[1.0, 3.0]], [[-1.0, 0.0]]]))
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    assert layer.weight().tolist() == [[2.0, 6.0, -1.0, 0.0], [-1.0, 0.0, 4.0, 12.0]]
    assert layer(torch.ones(4)).tolist() == [8.0, 15.0]


def test_the_weight_is_numpys_kron() -> None:
    """n = 3, 12 features to 6, rank 2: sum_i kron(A_i, s_i t_i)."""
    from fedpeft.methods.peft_tuners import PHMLinear

    torch.manual_seed(0)
    layer = PHMLinear(12, 6, PHMLinear.new_rule(3, torch.device("cpu")), rank=2)
    a, s, t = (value.detach().numpy() for value in (layer.rule, layer.left, layer.right))
    assert (a.shape, s.shape, t.shape) == ((3, 3, 3), (3, 2, 2), (3, 2, 4))
    expected = sum(np.kron(a[i], s[i] @ t[i]) for i in range(3))
    np.testing.assert_allclose(layer.weight().detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_first_weights_have_the_variance_of_one_over_inputs() -> None:
    """Over 40 projections of 256 features to 32, n = 4: 327 680 entries, of which entries of one projection depend."""
    from fedpeft.methods.peft_tuners import PHMLinear

    torch.manual_seed(0)
    made = [PHMLinear(256, 32, PHMLinear.new_rule(4, torch.device("cpu"))) for _ in range(40)]
    variance = torch.stack([layer.weight().detach() for layer in made]).var().item()
    assert variance == pytest.approx(1 / 256, rel=0.2)


@pytest.mark.parametrize(
    ("bottleneck", "n", "rank", "placement", "adapters"), [(8, 4, 1, "houlsby", 4), (12, 2, 3, "pfeiffer", 2)]
)
def test_parameters_by_formula(folder: str, bottleneck: int, n: int, rank: int, placement: str, adapters: int) -> None:
    """2 r (d + k) + d + k an adapter and n^3 for all, d = 32.

    k = 8, r = 1, n = 4, four adapters: 4 (80 + 40) + 64 = 544; k = 12, r = 3, n = 2, two: 2 (264 + 44) + 8 = 624.
    """
    method = Compacter(bottleneck=bottleneck, phm_dim=n, phm_rank=rank, placement=placement)
    tunable = method.attach(classifier(folder), "freeze")
    total = sum(v.numel() for v in tunable.shared.values())
    per_adapter = 2 * rank * (32 + bottleneck) + 32 + bottleneck
    assert total == adapters * per_adapter + n**3 == {8: 544, 12: 624}[bottleneck]
    assert tunable.shared[RULE].shape == (n, n, n)
    assert len(tunable.shared) == adapters * 6 + 1
    assert method.traits == frozenset()
    assert tunable.rank is None


def test_all_layers_share_one_rule_and_its_gradient(folder: str) -> None:
    """The rule's gradient is the sum of what each projection alone would give it."""
    tunable = Compacter(bottleneck=8).attach(classifier(folder), "freeze")
    made = projections(tunable.model)
    assert len(made) == 8
    assert all(layer.rule is tunable.shared[RULE] for layer in made)
    with torch.no_grad():
        for layer in made:
            layer.left.copy_(torch.randn(layer.left.shape, generator=torch.Generator().manual_seed(1)))
    tokens = torch.arange(4, 12).view(2, 4)

    def loss() -> torch.Tensor:
        return tunable.model.eval()(input_ids=tokens).logits.square().sum()

    loss().backward()
    whole = tunable.shared[RULE].grad.clone()
    parts = []
    for chosen in made:
        alone = nn.Parameter(chosen.rule.detach().clone())
        chosen.rule = alone
        loss().backward()
        chosen.rule = tunable.shared[RULE]
        parts.append(alone.grad)
    assert min(part.norm() for part in parts) > 0
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-4, atol=1e-5)


def test_the_rule_is_saved_once_and_stays_shared_when_loaded(folder: str, tmp_path: Path) -> None:
    from peft import PeftModel

    method = Compacter(bottleneck=8)
    tunable = method.attach(classifier(folder), "share")
    method.save(extract_tensors(tunable.shared), tmp_path, base_model=folder, head_keys=tunable.head_keys)
    assert [name for name in load_file(tmp_path / "adapter_model.safetensors") if "rule" in name] == [RULE]
    loaded = PeftModel.from_pretrained(classifier(folder), str(tmp_path), is_trainable=True)
    assert len({id(layer.rule) for layer in projections(loaded)}) == 1
    assert torch.equal(projections(loaded)[0].rule, tunable.shared[RULE])
    loaded.add_adapter("two", loaded.peft_config["default"])
    assert len({id(layer.rule) for layer in projections(loaded)}) == 2
    trained = {name: value for name, value in loaded.named_parameters() if value.requires_grad and "compacter" in name}
    assert sum(value.numel() for value in trained.values()) == 544


def test_under_autocast_the_weight_is_still_float32(folder: str) -> None:
    tunable = Compacter(bottleneck=8).attach(classifier(folder), "freeze")
    layer = projections(tunable.model)[0]
    with torch.autocast("cpu", torch.bfloat16):
        weight, output = layer.weight(), layer(torch.ones(2, 32))
    assert (weight.dtype, output.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(weight, layer.weight())


def test_products_are_counted_once_a_step(folder: str) -> None:
    """n = 4, r = 1, d = 32, k = 8, eight projections, without weights; 2 operations a multiply-add.

    Each makes s_i t_i in 2 n r (d / n) (k / n) = 128 and W in 2 n d k = 2048, once a step: 8 x 2176 = 17 408. Applying
    W takes 2 d k = 512 a token: 4096 in all.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder)

    def build(method: Compacter | None) -> nn.Module:
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        return method.attach(model, "share").model if method else model

    plain = measure_step_flops(lambda: build(None), forward_only=True)
    adapted = measure_step_flops(lambda: build(Compacter(bottleneck=8)), forward_only=True)
    assert adapted.per_step - plain.per_step == 17408
    assert adapted.per_token - plain.per_token == 4096
    assert measure_step_flops(lambda: build(Compacter(bottleneck=8))).per_step > 2 * 17408


def test_wrong_arguments_are_refused_with_the_key_to_set(folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Compacter(bottleneck=0, phm_dim=0, phm_rank=1.5, placement="late")
    assert [line.rsplit("(", 1)[1] for line in caught.value.problems] == [
        "set method.bottleneck)",
        "set method.placement)",
        "set method.phm_dim)",
        "set method.phm_rank)",
    ]
    with pytest.raises(ConfigError, match=r"phm_dim must divide the bottleneck 16, got 3 \(set method.phm_dim\)"):
        Compacter(bottleneck=16, phm_dim=3)
    with pytest.raises(ConfigError, match=r"phm_rank must be in 1..4.*got 5 \(set method.phm_rank\)"):
        Compacter(bottleneck=16, phm_dim=4, phm_rank=5)
    with pytest.raises(ConfigError, match=r"phm_dim must divide the targets' sizes 32, got 3 \(set method.phm_dim\)"):
        Compacter(bottleneck=12, phm_dim=3).attach(classifier(folder), "share")
