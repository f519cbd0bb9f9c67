"""Settings, plans and batches of example-level privacy, and a client's rounds under it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedpeft import config as cfg
from fedpeft.client.building import build_runtime
from fedpeft.client.private_round import prepare, told
from fedpeft.client.runtime import Runtime
from fedpeft.client.state import personal_state
from fedpeft.core.errors import ConfigError, PrivacyError, WireError
from fedpeft.core.wire import Instruction
from fedpeft.privacy.accounting import Release
from fedpeft.privacy.example_level import ExampleLevel
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.noise import SecureCoin
from fedpeft.privacy.poisson_batches import SeededCoins, pieces, poisson_batches, sampling_rate


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epsilon": 0.0}, "privacy.epsilon"),
        ({"epsilon": -1.0}, "privacy.epsilon"),
        ({"epsilon": None}, "privacy.epsilon and privacy.noise_multiplier"),
        ({"noise_multiplier": 0.0}, "privacy.noise_multiplier"),
        ({"delta": 0.0}, "privacy.delta"),
        ({"delta": 1.0}, "privacy.delta"),
        ({"delta": None}, "privacy.delta"),
        ({"clip_norm": 0.0}, "privacy.clip_norm"),
        ({"mode": "ghost"}, "privacy.mode must be one of hooks, microbatch"),
        ({"accountant": "gdp"}, "privacy.accountant must be one of pld, rdp"),
    ],
)
def test_wrong_settings_are_one_line_each(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExampleLevel(**{"epsilon": 8.0, **wrong})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(named)


def test_the_yaml_is_this_class_and_none_is_none() -> None:
    level = cfg.build(cfg.compose(["privacy=example_level"])["privacy"])
    assert level == ExampleLevel(epsilon=8.0, delta=1e-5)
    assert level.name == "example_level"


def test_a_plan_by_hand() -> None:
    """16 of 64 examples a step: q = 1/4. 5 examples are all in every batch, and the sum is divided by 5."""
    level = ExampleLevel(noise_multiplier=1.0)
    run = level.plan(num_examples=64, batch_size=16, steps=3, rounds=2)
    assert (run.sampling_rate, run.expected_batch) == (0.25, 16.0)
    assert run.next_release == Release(noise_multiplier=1.0, sampling_rate=0.25, steps=3)
    small = level.plan(num_examples=5, batch_size=16, steps=3, rounds=2)
    assert (small.sampling_rate, small.expected_batch) == (1.0, 5.0)


def test_all_planned_rounds_stay_within_the_budget_and_one_more_does_not() -> None:
    level = ExampleLevel(epsilon=2.0, delta=1e-3, accountant="rdp")
    run = level.plan(num_examples=119, batch_size=8, steps=4, rounds=3)
    for done in range(3):
        run.check([run.next_release] * done)
    assert run.spent([run.next_release] * 3) <= 2.0
    with pytest.raises(PrivacyError, match="budget is spent"):
        run.check([run.next_release] * 3)
    with pytest.raises(PrivacyError, match="budget is spent"):
        run.check([Release(noise_multiplier=0.5, sampling_rate=0.5, steps=50)])


def test_delta_must_be_below_one_over_the_clients_examples() -> None:
    with pytest.raises(ConfigError, match="delta must be below 1 / 100"):
        ExampleLevel(noise_multiplier=1.0, delta=0.01).plan(num_examples=100, batch_size=8, steps=1, rounds=1)


def test_a_statement_says_what_is_not_covered() -> None:
    run = ExampleLevel(noise_multiplier=1.0).plan(num_examples=100, batch_size=10, steps=5, rounds=2)
    statement = run.statement()
    assert (statement.steps, statement.sampling_rate) == (10, 0.1)
    assert 0 < statement.epsilon <= statement.epsilon_rdp
    assert any("how many examples" in sentence for sentence in statement.not_covered)


def test_each_example_is_in_a_batch_with_chance_q_and_by_itself() -> None:
    """64 examples, 16 expected. Of 2,000 batches sizes have mean 16 and variance 64 q (1 - q) = 12, as binomials do.

    Standard errors: sqrt(12 / 2000) = 0.077, and of the variance about 12 sqrt(2 / 2000) = 0.38; bounds are 5 of them.
    """
    for coins in (SecureCoin(), SeededCoins(np.random.default_rng(0))):
        batches = list(poisson_batches(np.arange(100, 164), 16, 2000, coins))
        sizes = np.array([len(batch) for batch in batches])
        assert abs(sizes.mean() - 16) < 0.39
        assert abs(sizes.var() - 12) < 1.9
        counts = np.bincount(np.concatenate(batches) - 100, minlength=64)
        assert abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)
    assert sampling_rate(16, 64) == 0.25


def test_pieces_hold_every_row_once_in_like_lengths() -> None:
    rows, lengths = np.arange(10, 31), np.random.default_rng(0).integers(1, 50, size=21)
    parts = pieces(rows, lengths, 8)
    assert [len(part) for part in parts] == [7, 7, 7]
    assert sorted(np.concatenate(parts)) == rows.tolist()
    length_of = dict(zip(rows, lengths, strict=True))
    in_order = [length_of[row] for part in parts for row in part]
    assert in_order == sorted(in_order)
    assert pieces(rows[:0], lengths[:0], 8) == []


def test_private_metrics_are_few() -> None:
    metrics = {
        "num-examples": 512, "train-loss": 0.5, "train-cpu-s": 1.0, "train-flops": 9.0, "train-steps": 16.0,
        "adapter-bytes": 10, "head-bytes": 2, "layer-scores": [0.1],
    }  # fmt: skip
    assert told(ExampleLevel(epsilon=8.0), metrics) == {
        "num-examples": 1, "train-steps": 16.0, "train-cpu-s": 1.0, "adapter-bytes": 10, "head-bytes": 2
    }  # fmt: skip


# -- a client's rounds -------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(toy_config: Callable[..., dict[str, Any]]) -> Callable[..., Runtime]:
    def make(*overrides: str) -> Runtime:
        common = ("privacy=example_level", "privacy.delta=0.001", "privacy.accountant=rdp")
        return build_runtime(toy_config(*common, *overrides))

    return make


def order(made: Runtime, server_round: int, **config: Any) -> Instruction:
    return Instruction(tensors=made.initial, server_round=server_round, identity=made.identity, config=config)


def test_rounds_are_booked_before_they_train_until_the_budget_is_spent(
    runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that fails in training stays booked: a crash counts too much, never too little."""
    made = runtime("rounds=2", "privacy.epsilon=3")
    personal = personal_state(made.config, 1)
    statement = prepare(made, made.privacy)
    assert statement.epsilon <= 3
    trained = made.train(1, order(made, 1), personal, 0)
    assert any((trained.tensors[key] != made.initial[key]).any() for key in made.initial)
    monkeypatch.setattr("fedpeft.client.private_round.train_private", _fails)
    with pytest.raises(RuntimeError, match="power cut"):
        made.train(1, order(made, 2), personal, 0)
    monkeypatch.undo()
    entries = Ledger(personal.folder / "ledger.jsonl", read_only=True).entries
    assert [(entry.unit, entry.server_round, entry.release.steps) for entry in entries] == [
        ("client 1", 1, 3),
        ("client 1", 2, 3),
    ]
    with pytest.raises(PrivacyError, match="budget is spent"):
        made.train(1, order(made, 2), personal, 0)
    assert len(Ledger(personal.folder / "ledger.jsonl", read_only=True).entries) == 2


def _fails(*args: Any, **rest: Any) -> Any:
    raise RuntimeError("power cut")


def test_an_edited_ledger_stops_the_client(runtime: Callable[..., Runtime]) -> None:
    made = runtime("privacy.noise_multiplier=1.0")
    personal = personal_state(made.config, 0)
    made.train(0, order(made, 1), personal, 0)
    path = personal.folder / "ledger.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 1}, sort_keys=True) + "\n")
    with pytest.raises(PrivacyError, match=r"ledger\.jsonl"):
        made.train(0, order(made, 2), personal, 0)


def test_two_runs_of_one_seed_send_other_tensors(runtime: Callable[..., Runtime]) -> None:
    made = runtime("privacy.noise_multiplier=1.0", "privacy.epsilon=null")
    sent = [made.train(client, order(made, 1), personal_state(made.config, client), 0).tensors for client in (0, 0)]
    assert any((sent[0][key] != sent[1][key]).any() for key in sent[0])


def test_what_would_tell_without_noise_is_refused_by_the_client(runtime: Callable[..., Runtime]) -> None:
    made = runtime()
    personal = personal_state(made.config, 0)
    with pytest.raises(WireError, match="probe=layers would tell without noise"):
        made.train(0, order(made, 1, **{"orders.probe": "layers"}), personal, 0)
    with pytest.raises(WireError, match="would tell without noise"):
        made.evaluate_client(0, order(made, 1), personal)
    assert not (personal.folder / "ledger.jsonl").exists()


def test_checkpointing_is_refused_at_start_under_hooks_alone(runtime: Callable[..., Runtime]) -> None:
    made = runtime("client.gradient_checkpointing=true")
    with pytest.raises(ConfigError, match="cannot see through gradient checkpointing"):
        prepare(made, made.privacy)
    made = runtime("client.gradient_checkpointing=true", "privacy.mode=microbatch")
    prepare(made, made.privacy)


def test_a_client_with_more_examples_than_delta_allows_is_found_at_start(runtime: Callable[..., Runtime]) -> None:
    made = runtime("privacy.delta=0.03", "privacy.noise_multiplier=1.0")
    with pytest.raises(ConfigError, match="delta must be below 1 / "):
        prepare(made, made.privacy)


def test_expected_tokens_repeat_themselves_and_are_near_what_is_trained(runtime: Callable[..., Runtime]) -> None:
    """3 steps of 8 expected texts of 6 to 13 tokens."""
    made = runtime()
    counts = [made.expected_tokens(0, "train", server_round) for server_round in (1, 1, 2)]
    assert counts[0] == counts[1] != counts[2]
    assert 3 * 2 * 6 < counts[0] < 3 * 24 * 13
