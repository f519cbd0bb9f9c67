"""Masks with virtual tokens in front, by hand, and models with them on torch's meta device."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification as Auto

from fedpeft.device_profiles.flops import measure_step_flops
from fedpeft.methods.adaption_prompt import LlamaAdapter
from fedpeft.methods.base import Method
from fedpeft.methods.peft_tuners.lengths import with_front
from fedpeft.methods.prefix import PrefixTuning
from fedpeft.methods.prompt import PromptTuning, PTuning

SLOW = -1e9


def test_every_token_sees_what_is_in_front() -> None:
    """One virtual token before a text of two, the second of them padding."""
    assert with_front(None, 1, queries=True) is None
    flat = with_front(torch.tensor([[1, 0]]), 1, queries=True)
    assert flat is not None and flat.tolist() == [[1, 1, 0]]
    allowed = with_front(torch.tensor([[[[True, False], [True, False]]]]), 1, queries=False)
    assert allowed is not None and allowed.tolist() == [[[[True, True, False]] * 2]]
    added = with_front(torch.tensor([[[[0.0, SLOW], [0.0, SLOW]]]]), 1, queries=False)
    assert added is not None and added.tolist() == [[[[0, 0, pytest.approx(SLOW)]] * 2]]
    rows = with_front(torch.tensor([[[[0.0, SLOW], [0.0, SLOW]]]]), 1, queries=True)
    assert rows is not None and rows.shape == (1, 1, 3, 3)
    assert rows[0, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("family", [*tiny.ENCODERS, *tiny.DECODERS])
@pytest.mark.parametrize("head", ["share", "freeze"])
@pytest.mark.parametrize(
    "method",
    [
        PrefixTuning(num_virtual_tokens=2),
        PrefixTuning(num_virtual_tokens=2, reparameterize=True, hidden_size=4),
        PromptTuning(num_virtual_tokens=2),
        PTuning(num_virtual_tokens=2),
        PTuning(num_virtual_tokens=2, encoder="lstm", hidden_size=4),
        LlamaAdapter(num_virtual_tokens=2),
    ],
    ids=["prefix", "reparameterised", "prompt", "mlp", "lstm", "llama_adapter"],
)
def test_operations_are_counted_on_models_without_weights(method: Method, family: str, head: str) -> None:
    if isinstance(method, LlamaAdapter) and family in tiny.ENCODERS:
        pytest.skip("not defined")
    config = tiny.config(family)
    assert (
        measure_step_flops(
            lambda: method.attach(Auto.from_config(config, attn_implementation="eager"), head).model
        ).step(4, 16)
        > 0
    )


def test_a_prompt_costs_what_its_tokens_cost() -> None:
    """Forward only, a BERT with P virtual tokens does for S tokens what it does without them for S + P."""
    config = tiny.config("bert")
    plain, prompted = (
        measure_step_flops(
            lambda method=method: method.attach(_eager(config), "freeze").model if method else _eager(config),
            forward_only=True,
        )
        for method in (None, PromptTuning(num_virtual_tokens=5))
    )
    assert prompted.step(3, 11) == plain.step(3, 16)


def test_a_prefix_costs_attention_to_it() -> None:
    """Two layers, 4 heads of 8, S queries to P keys and back to their values: 2 * 2 * 2 * 32 * S * P an example."""
    config = tiny.config("bert")
    plain = measure_step_flops(lambda: _eager(config), forward_only=True)
    method = PrefixTuning(num_virtual_tokens=5)
    prefixed = measure_step_flops(lambda: method.attach(_eager(config), "freeze").model, forward_only=True)
    assert prefixed.step(3, 16) - plain.step(3, 16) == 3 * 2 * 2 * 2 * 32 * 16 * 5


def _eager(config: object) -> torch.nn.Module:
    model: torch.nn.Module = Auto.from_config(config, attn_implementation="eager")
    return model
