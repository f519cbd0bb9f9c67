"""Gradient checkpointing changes nothing but memory and operations, and is refused where it would.

Decoders run with a cache otherwise: keys and values are copied into it, and a product of them is summed in another
order, which shows in the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from toy import with_method

from fedpeft.client.building import build_runtime
from fedpeft.client.runtime import Runtime
from fedpeft.client.sizing import refuse_checkpointing
from fedpeft.client.state import personal_state
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.orders import Orders
from fedpeft.core.wire import Instruction
from fedpeft.device_profiles.checkpointing import checkpointed
from fedpeft.methods.bottleneck import Adapter
from fedpeft.methods.compacter import Compacter
from fedpeft.methods.full import Full
from fedpeft.methods.lora import LoRA
from fedpeft.methods.prefix import PrefixTuning
from fedpeft.methods.prompt import PromptTuning

Make = Callable[..., dict[str, Any]]
METHODS = {
    "lora": LoRA(dropout=0.1),
    "dora": LoRA(dora=True),
    "adapter": Adapter(bottleneck=8),
    "compacter": Compacter(bottleneck=8),
    "prompt": PromptTuning(num_virtual_tokens=4),
    "full": Full(),
}


def attached(method: Any, family: str) -> Any:
    """A random classifier with the method moved away from where it starts; the same every time."""
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tunable = method.attach(AutoModelForSequenceClassification.from_config(tiny.config(family)), "share")
    tiny.shift(tunable.trainable, 0.05)
    return tunable


def gradients(tunable: Any, *, checkpointing: bool) -> list[torch.Tensor]:
    """The loss of a batch with padding and dropout, the gradients, and the next random number."""
    model = tunable.model.train()
    torch.manual_seed(1)
    with checkpointed(model, checkpointing):
        loss = model(**tiny.texts()).logits.square().sum()
        loss.backward()
    return [loss.detach(), *(value.grad for value in tunable.trainable), torch.rand(1)]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_the_same(name: str, family: str) -> None:
    """Bit for bit in encoders."""
    kept, again = (gradients(attached(METHODS[name], family), checkpointing=one) for one in (False, True))
    last_digit = 1e-5 if family in tiny.DECODERS else 0.0
    torch.testing.assert_close(again, kept, rtol=last_digit, atol=last_digit)
    refuse_checkpointing(attached(METHODS[name], family).model)


def test_it_ends_with_its_context_and_asks_no_gradient_of_the_embeddings() -> None:
    """Nor does the model ask for one afterwards."""
    model = attached(METHODS["lora"], "bert").model.train()
    with checkpointed(model):
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        assert not model.get_input_embeddings()(torch.zeros(1, 2, dtype=torch.long)).requires_grad
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not model.get_input_embeddings()(torch.zeros(1, 2, dtype=torch.long)).requires_grad


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_prefix_that_would_be_lost_is_refused(family: str) -> None:
    with pytest.raises(ConfigError, match=r"prefix tuning of .* cannot be checkpointed"):
        refuse_checkpointing(attached(PrefixTuning(num_virtual_tokens=4), family).model)


def test_a_prefix_inside_the_attention_may_be_checkpointed() -> None:
    """DistilBERT has no cache."""
    refuse_checkpointing(attached(PrefixTuning(num_virtual_tokens=4), "distilbert").model)
    kept, again = (
        gradients(attached(PrefixTuning(num_virtual_tokens=4), "distilbert"), checkpointing=one)
        for one in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_an_architecture_without_checkpointing_is_refused() -> None:
    with pytest.raises(ConfigError, match="not defined for Linear"):
        refuse_checkpointing(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="not defined for Linear"), checkpointed(torch.nn.Linear(1, 1)):
        pass


def train(runtime: Runtime, **orders: Any) -> Any:
    config = Orders(**orders).entries()
    told = Instruction(tensors=runtime.initial, server_round=1, identity=runtime.identity, config=config)
    return runtime.train(2, told, personal_state(runtime.config, 2), 0)


def test_a_client_trains_the_same_with_and_without(toy_config: Make) -> None:
    """By the config or by order; the operations of running the layers again are counted."""
    plain = train(build_runtime(toy_config("model.dropout=0.1")))
    runtime = build_runtime(toy_config("model.dropout=0.1"))
    for again in (
        train(build_runtime(toy_config("model.dropout=0.1", "client.gradient_checkpointing=true"))),
        train(runtime, checkpointing=True),
    ):
        assert again.result.loss == plain.result.loss
        assert all(np.array_equal(plain.tensors[key], again.tensors[key]) for key in plain.tensors)
        assert 1.3 < again.result.flops / plain.result.flops < 1.6
    assert train(runtime).result.flops == plain.result.flops


def test_a_method_that_cannot_is_refused_when_it_starts_and_when_it_is_ordered(toy: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prefix tuning"):
        build_runtime(with_method(toy, tmp_path, "prefix", "client.gradient_checkpointing=true"))
    runtime = build_runtime(with_method(toy, tmp_path, "prefix"))
    with pytest.raises(WireError, match="prefix tuning") as caught:
        train(runtime, checkpointing=True)
    assert caught.value.check == "orders"
    with pytest.raises(ConfigError, match="prefix tuning"):
        runtime.step_flops(0, frozenset(runtime.initial), True)


def test_an_ordered_batch_size_is_obeyed_and_foretold(toy_config: Make) -> None:
    """Three batches of 4 instead of 8: fewer operations, of the batches that are foretold; twice the steps an epoch."""
    runtime = build_runtime(toy_config())
    small = train(runtime, batch_size=4).result
    assert (small.steps, train(runtime).result.steps) == (3, 3)
    assert small.flops < 0.7 * train(runtime).result.flops
    assert runtime.expected_tokens(2, "train", 1, 4) < runtime.expected_tokens(2, "train", 1)
    epochs = build_runtime(toy_config("client.local_steps=null"))
    examples = epochs.num_train_examples(2)
    assert train(epochs, batch_size=4).result.steps == -(-examples // 4)
    assert train(epochs).result.steps == -(-examples // 8)
