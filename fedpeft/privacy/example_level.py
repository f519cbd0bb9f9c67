"""Example-level privacy on the device: what a client sends hardly depends on any one of its examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.core.errors import BudgetError, ConfigError
from fedpeft.privacy.accounting import ACCOUNTANTS, Accountant, Release, check_delta, epsilon, named
from fedpeft.privacy.calibrate import noise_multiplier_for
from fedpeft.privacy.poisson_batches import sampling_rate
from fedpeft.privacy.settings import settings_problems
from fedpeft.privacy.statement import PrivacyStatement

MODES = ("hooks", "microbatch")
NOT_COVERED = (
    "how many examples a client holds, on which its sampling rate depends",
    "memory, time and size of messages, which depend on how long a client's texts are",
    "whose examples they are: someone with k of them is protected k times less (choose privacy=client_level)",
)


HELD_OUT = "the examples that clients keep for evaluation: how a model does on them is told without noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleLevel:
    """DP-SGD in each client's own training (Abadi et al. 2016, arXiv:1607.00133), over everything that trains.

        batch:  each of the client's n examples by a coin of its own, with chance q = batch_size / n (1 at most)
        step:   (sum_i g_i min(1, C / ||g_i||) + N(0, (z C)^2)) / (q n),   g_i: gradient of example i's own loss

    The optimiser then makes of the noised gradient what it likes: its moments, weight decay, and the pulls of FedProx,
    SCAFFOLD and HetLoRA, which depend on what the server sent and not on examples, are post-processing. So is all that
    the client sends. The gradient norm is clipped for each example and not again: ``client.max_grad_norm`` is left out.
    Coins and noise come from the operating system and from no seed. A client trusts nobody with this, not the server.

    Args:
        epsilon: a client's budget for the whole run, spent if it takes part in every round; None for none, where
            ``noise_multiplier`` is given.
        delta: of the promise, below 1 / n for every client.
        clip_norm: C.
        noise_multiplier: z; None for the least that ``epsilon`` allows, for each client by its q.
        mode: how gradients of single examples are found: ``hooks`` from one backward pass by Opacus, which a self-test
            admits or refuses for the method and model at hand; ``microbatch`` from one backward pass for each example,
            for every method, some times slower.
        accountant: ``pld`` (tight) or ``rdp``.
        tell_evaluations: whether clients tell how a model does on examples that they keep from training. These examples
            are then not covered; those that train are, because the model is made of noised steps.

    Raises:
        ConfigError: a setting is out of range; all problems together.

    Example:
        >>> run = ExampleLevel(epsilon=8.0, delta=1e-5).plan(num_examples=800, batch_size=16, steps=16, rounds=5)
        >>> run.sampling_rate, run.statement().epsilon <= 8
        (0.02, True)
    """

    name: ClassVar[str] = "example_level"

    epsilon: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    noise_multiplier: float | None = None
    mode: str = "hooks"
    accountant: Accountant = "pld"
    tell_evaluations: bool = False

    def __post_init__(self) -> None:
        problems = list(
            settings_problems(
                epsilon=self.epsilon,
                delta=self.delta,
                clip_norm=self.clip_norm,
                noise_multiplier=self.noise_multiplier,
            )
        )
        if self.delta is None:
            problems.append("privacy.delta must be a number in (0, 1), got None")
        if not isinstance(self.tell_evaluations, bool):
            problems.append(f"privacy.tell_evaluations must be true or false, got {self.tell_evaluations!r}")
        for setting, value, choices in (("mode", self.mode, MODES), ("accountant", self.accountant, ACCOUNTANTS)):
            if value not in choices:
                problems.append(f"privacy.{setting} must be one of {', '.join(choices)}, got {value!r}")
        if problems:
            raise ConfigError(problems)

    def problems(self, strategy: Any, method: Any, codec: Any, config: Mapping[str, Any]) -> list[str]:
        """Return a line for each thing in a config that would break or void the promise.

        Args:
            strategy: a built strategy, fedpeft's or Flower's.
            method: a built method.
            codec: a built codec.
            config: the plain config.
        """
        from fedpeft.privacy.refusals import privacy_problems

        return list(privacy_problems(self, strategy, method, codec, config))

    def statement(
        self,
        *,
        noise_multiplier: float | None,
        sampling_rate: float | None,
        steps: int | None,
        epsilon: float,
        epsilon_rdp: float | None,
        accountant: str,
    ) -> PrivacyStatement:
        """Return this promise in words, with the numbers of a run; see ``PrivacyStatement``."""
        return PrivacyStatement(
            unit="one example of a client, from the server and everybody else",
            adjacency="add or remove one example of one client",
            mechanism="DP-SGD on the client: each example's gradient is clipped and their sum noised in every step",
            sampling="each example by a coin of its own in each step",
            noise_multiplier=noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=sampling_rate,
            steps=steps,
            delta=self.delta,
            epsilon=epsilon,
            epsilon_rdp=epsilon_rdp,
            accountant=accountant,
            trust="nobody: noise is added on the device before anything leaves it",
            not_covered=NOT_COVERED + ((HELD_OUT,) if self.tell_evaluations else ()),
        )

    def plan(self, *, num_examples: int, batch_size: int, steps: int, rounds: int) -> ExampleLevelRun:
        """Return what carries this out on one client.

        Args:
            num_examples: n, examples that the client trains on.
            batch_size: expected size of a batch.
            steps: optimiser steps a round.
            rounds: number of the run's last round: the client may take part in all of them.

        Raises:
            ConfigError: the client has no examples, delta is not below 1 / n, or no noise fits the budget.
        """
        if num_examples < 1:
            raise ConfigError("privacy needs a client with at least one example, got 0 (set num_clients lower)")
        check_delta(self.delta, num_examples)
        noise_multiplier = self.noise_multiplier
        if noise_multiplier is None:
            assert self.epsilon is not None, "the constructor saw to it"
            noise_multiplier = noise_multiplier_for(
                self.epsilon,
                self.delta,
                # Clients of like size share one search; the smaller one of them sets it, on the safe side.
                sampling_rate=sampling_rate(batch_size, _rounded_down(num_examples)),
                steps=steps * rounds,
                accountant=self.accountant,
            )
        return ExampleLevelRun(
            settings=self,
            noise_multiplier=noise_multiplier,
            num_examples=num_examples,
            batch_size=batch_size,
            steps=steps,
            rounds=rounds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleLevelRun:
    """Carries out ``ExampleLevel`` on one client; made by ``ExampleLevel.plan``.

    Attributes:
        settings: what is promised.
        noise_multiplier: z.
        num_examples: n.
        batch_size: expected size of a batch where n allows it.
        steps: steps a round.
        rounds: rounds that are planned.
    """

    settings: ExampleLevel
    noise_multiplier: float
    num_examples: int
    batch_size: int
    steps: int
    rounds: int

    @property
    def sampling_rate(self) -> float:
        """The chance q with which an example is in a step's batch."""
        return sampling_rate(self.batch_size, self.num_examples)

    @property
    def expected_batch(self) -> float:
        """What the noised sum of a step is divided by, whatever the batch's size: q n."""
        return float(min(self.batch_size, self.num_examples))

    @property
    def next_release(self) -> Release:
        """What taking part in one round spends."""
        return Release(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=self.steps)

    def spent(self, releases: Sequence[Release]) -> float:
        """Return the epsilon of these releases at the promised delta."""
        return epsilon(list(releases), self.settings.delta, accountant=self.settings.accountant)

    def check(self, spent: Sequence[Release]) -> None:
        """Refuse to train in a round that would pass this client's budget.

        Args:
            spent: every release of this client so far, from its ledger.

        Raises:
            BudgetError: the budget does not last for one more round.
        """
        budget = self.settings.epsilon
        if budget is None or self._is_planned(spent):
            return
        after = self.spent([*spent, self.next_release])
        if after > budget:
            raise BudgetError(
                f"this client's privacy budget is spent: it has come to epsilon {self.spent(spent):.4g}, {self.steps} "
                f"steps more would make it {after:.4g}, privacy.epsilon={budget:g} (it trains no more)"
            )

    def _is_planned(self, spent: Sequence[Release]) -> bool:
        """Whether one more round is among those for which the noise was fitted to the budget."""
        fitted = self.settings.noise_multiplier is None
        return fitted and len(spent) < self.rounds and all(one == self.next_release for one in spent)

    def statement(self) -> PrivacyStatement:
        """Return what the run promises for an example of this client, if it trains in every round."""
        planned = [
            Release(
                noise_multiplier=self.noise_multiplier,
                sampling_rate=self.sampling_rate,
                steps=self.steps * self.rounds,
            )
        ]
        delta = self.settings.delta
        bound, by_rdp = epsilon(planned, delta), epsilon(planned, delta, accountant="rdp")
        return self.settings.statement(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps * self.rounds,
            epsilon=bound,
            epsilon_rdp=by_rdp,
            accountant=named(bound, by_rdp),
        )


def _rounded_down(count: int) -> int:
    """Return a count cut to two significant digits.

    Example:
        >>> _rounded_down(1289), _rounded_down(87)
        (1200, 87)
    """
    unit = int(10 ** max(0, math.floor(math.log10(count)) - 1))
    return count // unit * unit
