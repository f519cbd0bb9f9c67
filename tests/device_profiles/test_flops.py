"""FLOPs from the meta device equal those of the real computation, and show what each method saves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from step_models import lora
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.flops import StepFlops, measure_step_flops, solve

Build = Callable[[], PreTrainedModel]
LAYERS = 4
SIZES = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def bert(attention: str = "eager") -> PreTrainedModel:
    """Return a tiny BERT with a classifier, all of it trainable."""
    config = BertConfig(**SIZES, vocab_size=100, num_labels=3)
    return BertForSequenceClassification._from_config(config, attn_implementation=attention)


def llama(cls: type[PreTrainedModel] = LlamaForCausalLM) -> PreTrainedModel:
    """Return a tiny Llama with grouped key-value heads, all of it trainable."""
    config = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=200, num_labels=3, pad_token_id=1)
    return cls._from_config(config, attn_implementation="eager")


BUILDS: dict[str, Build] = {
    "bert full": bert,
    "bert lora + head": lambda: lora(bert(), heads=("classifier",)),
    "llama full": llama,
    "llama lora": lambda: lora(llama()),
    "llama lora last layer": lambda: lora(llama(), layers=[LAYERS - 1]),
    "llama classifier lora + head": lambda: lora(llama(LlamaForSequenceClassification), heads=("score",)),
}


def direct(model: PreTrainedModel, batch_size: int, seq_len: int, *, forward_only: bool = False) -> int:
    """Count a step with real tensors, a padding mask and no help from the code under test."""
    input_ids = torch.full((batch_size, seq_len), 5)
    mask = torch.ones_like(input_ids)
    if seq_len > 2:
        mask[0, -2:] = 0
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(not forward_only):
        loss = model(input_ids=input_ids, attention_mask=mask).logits.float().sum()
        if not forward_only:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("forward_only", [False, True], ids=["step", "evaluation"])
def test_the_polynomial_is_the_real_computation(name: str, forward_only: bool) -> None:
    flops = measure_step_flops(BUILDS[name], forward_only=forward_only)
    model = BUILDS[name]()
    for batch_size, seq_len in [(1, 3), (3, 17), (5, 40), (2, 1)]:
        expected = direct(model, batch_size, seq_len, forward_only=forward_only)
        assert flops.step(batch_size, seq_len) == pytest.approx(expected, rel=1e-9)


def ratio(build: Build, batch_size: int = 4, seq_len: int = 32) -> float:
    """Return a step's FLOPs over those of its forward pass in the model without adapters."""
    plain = bert if "bert" in type(build()).__name__.lower() else llama
    forward = measure_step_flops(plain, forward_only=True)
    return measure_step_flops(build).step(batch_size, seq_len) / forward.step(batch_size, seq_len)


def test_full_fine_tuning_takes_three_forwards() -> None:
    """Backward: one product for the inputs' gradient, one for the weights'; the first layer's input has none."""
    assert ratio(bert) == pytest.approx(3.0, abs=0.02)
    assert ratio(llama) == pytest.approx(3.0, abs=0.02)


def test_a_forward_pass_by_hand() -> None:
    """A multiply-add is 2. Per layer and token: q, k, v, output 4 d^2, feed-forward 2df; per pair qk and pv, d
    each; per example the pooler d^2 and the classifier d * labels. d = 64, f = 128, 4 layers, 3 labels:
    2 * (4096 + 192) = 8576, 4 * 2 * (16384 + 16384) = 262144, 4 * 2 * 2 * 64 = 1024.
    """
    flops = measure_step_flops(bert, forward_only=True)
    assert flops == StepFlops(per_example=8576, per_token=262144, per_token_pair=1024)


def minilm() -> PreTrainedModel:
    """Return the demo's model: MiniLM's shape."""
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
    )
    return BertForSequenceClassification._from_config(config, attn_implementation="eager")


def test_lora_on_the_demo_model_by_hand() -> None:
    """MiniLM's shape (d 384, f 1536, 6 layers) with LoRA r8 on query and value and a trainable classifier.

    Forward: per token 6 * 2 * (4 d^2 + 2 d f) = 21233664, per pair 6 * 4 d = 9216, per example 2 (d^2 + 2 d) = 296448.
    Backward sends a gradient through every frozen layer (the same again), except where nothing trainable lies before:
    query, key and value of layer 0 need none for their input (-2 * 3 d^2 = -884736 per token), and its key needs none
    at all (-2 d = -768 of 2 * 9216 per pair).
    LoRA: 12 pairs A, B of 2 * 2 * 8 d = 12288 forward, for the weights and for the input, less A's input in layer 0:
    3 * 147456 - 2 * 2 * 8 d = 430080 per token.
    Per example the frozen pooler once more (294912) and the classifier twice more (2 * 1536).
    Together 42012672 B S + 26880 B S^2 + 594432 B, 1.99 forwards at S = 32.
    """
    forward = measure_step_flops(minilm, forward_only=True)
    step = measure_step_flops(lambda: lora(minilm(), heads=("classifier",)))
    assert forward == StepFlops(per_example=296448, per_token=21233664, per_token_pair=9216)
    assert step == StepFlops(per_example=594432, per_token=42012672, per_token_pair=26880)
    assert step.step(16, 32) / forward.step(16, 32) == pytest.approx(1.99, abs=0.005)


def tinyllama() -> PreTrainedModel:
    """Return the shape of TinyLlama-1.1B."""
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def test_the_norm_of_doras_matrices_is_work_of_a_step_whatever_the_batch() -> None:
    """DoRA takes the norm of W0 + s B A, and HF peft makes B A by sending the identity through A and B: for each of 8
    modules (d = 64, r = 8) 2 * 2 * 8 d^2 = 131072 a step, with no gradient through the norm.
    """

    def dora() -> PreTrainedModel:
        model = bert()
        inject_adapter_in_model(LoraConfig(r=8, target_modules=["query", "value"], use_dora=True), model)
        return model

    assert measure_step_flops(dora, forward_only=True).per_step == 8 * 131072
    assert measure_step_flops(dora).per_step == 8 * 131072
    assert measure_step_flops(BUILDS["bert lora + head"]).per_step == 0


def test_lora_on_a_billion_parameters_takes_two_forwards() -> None:
    """Counted independently at S = 512: 1107.6 GFLOP forward, 2257.2 for a LoRA r8 step on query, value (2.038)."""
    forward = measure_step_flops(lambda: lora(tinyllama()), forward_only=True).step(1, 512)
    step = measure_step_flops(lambda: lora(tinyllama())).step(1, 512)
    assert forward == pytest.approx(1107.6e9, rel=1e-4)
    assert step == pytest.approx(2257.2e9, rel=1e-4)


def test_fewer_layers_cost_less() -> None:
    """Backward stops at the first trainable layer: of 4 equal layers the last one needs about a quarter of it."""
    forward = measure_step_flops(llama, forward_only=True).step(4, 32)
    every, half, last = (
        measure_step_flops(lambda layers=layers: lora(llama(), layers=layers)).step(4, 32)
        for layers in ([0, 1, 2, 3], [2, 3], [3])
    )
    assert forward < last < half < every
    assert last / every < 0.75


def test_a_checkpointed_step_runs_its_layers_once_more() -> None:
    """BERT d = 64, f = 128, 4 layers: a layer's forward is 2 (4 d^2 + 2 d f) = 65536 a token and 4 d = 256 a pair. Its
    last product (2 d f = 16384) has to run again too, because dropout behind it keeps its input's mask.

    With the last layer alone trained nothing else runs again: no gradient passes the others.
    """
    plain, again = (measure_step_flops(bert, checkpointing=one) for one in (False, True))
    assert again.per_token - plain.per_token == 4 * 65536
    assert again.per_token_pair - plain.per_token_pair == 4 * 256
    assert again.per_example == plain.per_example
    last = [
        measure_step_flops(lambda: lora(bert(), layers=[LAYERS - 1]), checkpointing=one).per_token_pair
        for one in (False, True)
    ]
    assert last[1] - last[0] == 256
    assert measure_step_flops(bert, forward_only=True, checkpointing=True).per_token == 4 * 65536


def test_the_dtype_does_not_change_the_count() -> None:
    """A bfloat16 base with float32 adapters and head, as trained under autocast."""

    def build() -> PreTrainedModel:
        model = lora(bert().to(torch.bfloat16), heads=("classifier",))
        model.classifier.float()
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
        return model

    assert measure_step_flops(build) == measure_step_flops(BUILDS["bert lora + head"])


def test_no_weight_is_allocated() -> None:
    """70 billion parameters would need 280 GB."""
    devices = []

    def build() -> PreTrainedModel:
        config = LlamaConfig(hidden_size=8192, num_hidden_layers=2, intermediate_size=28672, num_attention_heads=64)
        model = lora(LlamaForCausalLM._from_config(config, attn_implementation="eager"))
        devices.extend({parameter.device.type for parameter in model.parameters()})
        return model

    assert measure_step_flops(build).step(1, 512) > 1e12
    assert devices == ["meta"]


def test_four_points_give_the_polynomial_back() -> None:
    """11 + B (7 + 5 S + 3 S^2): at B = 1 and S = 2, 4, 10 it is 11 + 29, 75, 357, at B = 3, S = 6 11 + 3 * 145 = 446;
    a batch of 5 at S = 6 is 11 + 5 * 145 = 736.
    """
    flops = solve({(1, 2): 40, (1, 4): 86, (3, 6): 446, (1, 10): 368})
    assert flops == StepFlops(per_step=11, per_example=7, per_token=5, per_token_pair=3)
    assert flops.step(5, 6) == 736


def test_fused_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be built as eager to be counted, got sdpa"):
        measure_step_flops(lambda: bert("sdpa"))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no trainable parameter"):
        measure_step_flops(lambda: bert().requires_grad_(False))
    assert measure_step_flops(lambda: bert().requires_grad_(False), forward_only=True).per_token > 0


class Cubic(torch.nn.Module):
    """Multiplies (S, S) by (S, S): FLOPs grow with the cube of the length."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Return the product of the mask with itself."""
        mask = attention_mask[:, 0] * self.scale
        return SimpleNamespace(logits=mask @ mask)


def test_a_model_that_is_no_polynomial_is_refused() -> None:
    with pytest.raises(ConfigError, match="FLOPs of Cubic are no polynomial"):
        measure_step_flops(Cubic)
