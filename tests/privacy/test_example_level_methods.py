"""Every method of conf/method on BERT, GPT-2 and Llama: what hooks get right, what is refused, and what bugs do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from private_models import METHODS, MODELS, ROWS, attached, base, task

from fedpeft.client import private_training
from fedpeft.client.private_repairs import repairs_for
from fedpeft.client.private_training import admit, losses_of
from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.methods.base import Tunable
from fedpeft.privacy.microbatch import Losses, OneByOne
from fedpeft.privacy.self_test import EXACT, MIXED, Findings, measured_sensitivity, self_test

UNDEFINED = {
    ("bitfit", "llama"),
    ("bitfit", "llama-lm"),
    ("peft", "gpt2"),
    ("peft", "gpt2-lm"),
    ("llama_adapter", "bert"),
}
"""Pairs that there are not."""
REFUSED = {("full", "gpt2-lm"), ("full", "llama-lm")}
"""Pairs that need privacy.mode=microbatch: a tied output layer that sees only the tokens that are learned."""
TABLE = {
    (method, model): "undefined"
    if (method, model) in UNDEFINED
    else "refused"
    if (method, model) in REFUSED
    else "hooks"
    for method in METHODS
    for model in MODELS
}
"""Method and model -> ``hooks`` where gradients are sound, ``refused`` where they are not, ``undefined``."""
DEFINED = [pair for pair, verdict in TABLE.items() if verdict != "undefined"]
ROWS_TESTED = ROWS[:3]


def findings(
    tunable: Tunable, model: str, losses: Losses | None = None, repairs: Any = repairs_for, dtype: str = "float32"
) -> Findings:
    """The self-test's findings with a loss and repairs of choice."""
    losses = losses or losses_of(task(model), dtype)
    return self_test(
        tunable.model, tunable.trainable, losses, ROWS_TESTED, repairs=lambda: repairs(tunable.model), what="it"
    )


def verdict(method: str, model: str) -> str:
    try:
        tunable = attached(method, model)
    except ConfigError:
        return "undefined"
    try:
        findings(tunable, model).check("it", EXACT)
    except PrivacyError:
        return "refused"
    return "hooks"


@pytest.mark.parametrize(("method", "model"), TABLE)
def test_the_table_of_methods_and_models(method: str, model: str) -> None:
    """Gradients within 1e-5 of those computed one by one, and no example moves a step by more than C (1 + 1e-5)."""
    assert verdict(method, model) == TABLE[method, model]


@pytest.mark.parametrize(("method", "model"), DEFINED)
def test_microbatch_serves_everything(method: str, model: str) -> None:
    """Sensitivity at most C (1 + 1e-5), where every example is clipped: then it is C itself."""
    tunable = attached(method, model)
    alone = OneByOne(tunable.model, tunable.trainable, losses_of(task(model), "float32"))

    def gradients(rows: np.ndarray) -> list[torch.Tensor]:
        return [torch.cat(each) for each in zip(*alone.samples(rows), strict=True)]

    moved = measured_sensitivity(gradients, tunable.trainable, ROWS_TESTED, 1e-4)
    assert moved == pytest.approx(1, abs=1e-5)


def test_what_the_self_test_leaves_behind_is_nothing() -> None:
    tunable = attached("prefix", "gpt2-lm")
    before = {name: value.clone() for name, value in tunable.model.state_dict().items()}
    modes = [module.training for module in tunable.model.modules()]
    findings(tunable, "gpt2-lm").check("it", EXACT)
    assert all(torch.equal(value, before[name]) for name, value in tunable.model.state_dict().items())
    assert [module.training for module in tunable.model.modules()] == modes
    assert_untouched(tunable)


def assert_untouched(tunable: Tunable) -> None:
    """No hook of ours or of Opacus, and nothing hung on a parameter."""
    for module in tunable.model.modules():
        assert not module._backward_hooks
        assert not any("Hooks" in repr(one) or "Repair" in repr(one) for one in module._forward_hooks.values())
        assert not {"activations", "max_batch_len", "ft_compute_sample_grad"} & vars(module).keys()
        assert "heads" not in vars(module)
    for value in tunable.model.parameters():
        assert value.grad is None
        assert not hasattr(value, "grad_sample") and not hasattr(value, "_forward_counter")


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix", "ia3", "dora", "bitfit", "compacter"])
def test_bfloat16_products_pass_at_their_own_tolerance(method: str) -> None:
    """Numbers of 8 bits: gradients differ from those computed one by one by some thousandths, not by halves."""
    found = findings(attached(method, "bert"), "bert", dtype="bfloat16")
    found.check("it", MIXED)
    assert found.error <= MIXED
    assert found.sensitivity == pytest.approx(1, abs=MIXED), "every example is clipped, so one moves the sum by C"


def test_fixed_factors_take_no_part() -> None:
    """LoRA-SB's factors may be among what trains; noise on them would destroy what they are."""
    tunable = attached("lora_sb", "bert")
    found = findings(tunable, "bert")
    fixed = [key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tunable.shared]
    assert list(found.takes_part) == [not one for one in fixed]


# -- planted bugs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt", "p_tuning", "prefix", "ia3", "adalora", "dora", "bitfit", "slora"])
def test_a_method_without_its_repair_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tunable, rest = attached(method, "bert"), {"mode": "hooks", "dtype": "float32", "what": "Method on Model"}
    admit(tunable, task("bert"), ROWS, tunable.trainable, **rest)
    monkeypatch.setattr(private_training, "repairs_for", lambda model: [])
    with pytest.raises(PrivacyError, match=r"^Method on Model .*privacy\.mode=microbatch"):
        admit(tunable, task("bert"), ROWS, tunable.trainable, **rest)
    assert_untouched(tunable)


@pytest.mark.parametrize("model", ["gpt2-lm", "llama-lm"])
def test_hf_pefts_own_prompt_tuning_is_found_out(model: str) -> None:
    """It makes one prompt for the whole batch: what looks like an example's gradient is not one."""
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(base(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    parameters = [value for value in wrapped.parameters() if value.requires_grad]
    losses = losses_of(task(model), "float32")
    with pytest.raises(PrivacyError):
        self_test(wrapped, parameters, losses, ROWS_TESTED, repairs=lambda: (), what="it").check("it", EXACT)


@pytest.mark.parametrize("model", ["gpt2-lm", "llama-lm"])
def test_a_mean_over_the_batchs_tokens_is_found_out(model: str) -> None:
    """One example's tokens would weigh all the others."""
    texts = task(model)

    def token_mean(network: Any, rows: np.ndarray) -> torch.Tensor:
        count = torch.from_numpy(texts.num_learned[rows]).float()
        return losses_of(texts, "float32")(network, rows) * count / count.sum()

    tunable = attached("lora", model)
    findings(tunable, model).check("it", EXACT)
    with pytest.raises(PrivacyError, match="gradients of single examples are wrong"):
        findings(tunable, model, token_mean).check("it", EXACT)


def test_a_loss_that_mixes_examples_moves_more_than_the_clip_norm() -> None:
    """Each example is given the batch's mean: without one of them all the others turn round."""

    def gradients(rows: np.ndarray) -> list[torch.Tensor]:
        mean = torch.tensor([[float(row), -float(row)] for row in rows]).mean(0)
        return [mean.expand(len(rows), 2)]

    moved = measured_sensitivity(gradients, [torch.zeros(2)], np.array([1, 1, -9]), 0.1)
    assert moved > 1.5


def test_not_a_number_is_no_pass() -> None:
    for broken in ({"error": float("nan"), "sensitivity": 1.0}, {"error": 0.0, "sensitivity": float("nan")}):
        with pytest.raises(PrivacyError):
            Findings(takes_part=(True,), **broken).check("it", EXACT)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_dropout_inside_what_runs_twice_is_refused() -> None:
    rest = {"dtype": "float32", "what": "DoRA"}
    tunable = attached("dora", "bert", "method.dropout=0.1")
    with pytest.raises(ConfigError, match="draws dropout"):
        admit(tunable, task("bert"), ROWS, tunable.trainable, mode="hooks", **rest)
    plain = attached("lora", "bert", "method.dropout=0.1")
    assert all(admit(plain, task("bert"), ROWS, plain.trainable, mode="hooks", **rest))
