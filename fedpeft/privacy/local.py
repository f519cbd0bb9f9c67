"""Local privacy: each client clips and noises its own change, so that not even the server sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.core.tensors import canonical
from fedpeft.core.types import Tensors
from fedpeft.privacy.accounting import Release, epsilon, named
from fedpeft.privacy.calibrate import analytic_gaussian_sigma
from fedpeft.privacy.clipping import shortened, sound_norm
from fedpeft.privacy.ledger import Budget, Ledger, client_unit
from fedpeft.privacy.noise import SecureNormal
from fedpeft.privacy.noised_mean import Noise
from fedpeft.privacy.settings import delta_for, delta_warnings, settings_problems
from fedpeft.privacy.statement import PrivacyStatement

NOT_COVERED = (
    "what clients say of themselves when they join",
    "memory, time and size of messages, which depend on how long a client's texts are",
    "that a client takes part, and in which rounds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Every client lets out its change clipped and with Gaussian noise on it, as much as is needed and no more.

        d <- d min(1, C / ||d||) + N(0, sigma^2),   sigma = z 2 C

    Neighbouring are any two data sets that a client might hold: its clipped change then moves by at most 2 C, so that z
    is the noise multiplier. Nothing amplifies it, because the server knows who took part. T rounds are one Gaussian
    mechanism of z / sqrt(T), whose epsilon is exact (the analytic Gaussian mechanism, Balle and Wang 2018,
    arXiv:1805.06530).

    The change is noised before the codec packs it: what the codec keeps back for the next round is then made of noised
    numbers alone and costs nothing. Tensors that a client keeps for itself never leave it and are not noised. Metrics
    stay on the client, and all clients say that they hold one example.

    Args:
        epsilon: what a client spends that takes part in every round; None where ``noise_multiplier`` is given.
        delta: of the promise, below 1 / N; None for N^-1.1.
        clip_norm: C.
        noise_multiplier: z; None for the least that ``epsilon`` allows.

    Raises:
        ConfigError: a setting is out of range; all problems together.

    Example:
        >>> run = Local(epsilon=8.0, delta=1e-5).plan(rounds=10, num_clients=100)
        >>> round(run.statement().epsilon, 6)
        8.0
    """

    name: ClassVar[str] = "local"

    epsilon: float | None = None
    delta: float | None = None
    clip_norm: float = 1.0
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        problems = list(
            settings_problems(
                epsilon=self.epsilon,
                delta=self.delta,
                clip_norm=self.clip_norm,
                noise_multiplier=self.noise_multiplier,
            )
        )
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

    def plan(self, *, rounds: int, num_clients: int) -> LocalRun:
        """Return what carries this out on one client, or on all of them.

        Args:
            rounds: number of the run's last round: a client may take part in all of them.
            num_clients: N, all registered clients, which delta is held against.

        Raises:
            ConfigError: delta is not below 1 / N.
        """
        delta = delta_for(self.delta, num_clients)
        noise_multiplier = self.noise_multiplier
        if noise_multiplier is None:
            assert self.epsilon is not None, "the constructor saw to it"
            noise_multiplier = rounds**0.5 * analytic_gaussian_sigma(self.epsilon, delta, 1.0)
        return LocalRun(
            epsilon=self.epsilon,
            delta=delta,
            clip_norm=self.clip_norm,
            noise_multiplier=noise_multiplier,
            rounds=rounds,
            num_clients=num_clients,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """Carries out ``Local`` in one run; made by ``Local.plan``.

    Attributes:
        epsilon: a client's budget, None for none.
        delta: of the promise.
        clip_norm: C.
        noise_multiplier: z, over the sensitivity 2 C.
        rounds: how many releases are planned.
        num_clients: N, all registered clients.
    """

    epsilon: float | None
    delta: float
    clip_norm: float
    noise_multiplier: float
    rounds: int
    num_clients: int

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each value: 2 C z."""
        return 2 * self.clip_norm * self.noise_multiplier

    @property
    def next_release(self) -> Release:
        """What taking part in one round spends."""
        return Release(noise_multiplier=self.noise_multiplier, kind="full")

    def expected_norm(self, num_values: int) -> float:
        """Return about how long a noised change is: sqrt(C^2 + d (2 C z)^2); ``guard.max_norm`` must be above it.

        Args:
            num_values: d, values that a client sends.
        """
        return float((self.clip_norm**2 + num_values * self.std**2) ** 0.5)

    def check(self, ledger: Ledger, client_id: int) -> None:
        """Refuse to take part in a round whose release would pass this client's budget; call it before training.

        Raises:
            PrivacyError: the budget does not last for one more.
        """
        if self.epsilon is not None:
            unit = client_unit(client_id)
            Budget(epsilon=self.epsilon, delta=self.delta).check(ledger, unit, self.next_release)

    def book(self, ledger: Ledger, client_id: int, *, server_round: int, run_id: str, dataset: str) -> None:
        """Write a reply down, and return when it is on the disk; call ``perturb`` after that, never before.

        Args:
            ledger: the client's own.
            client_id: whose.
            server_round: the round.
            run_id: the run.
            dataset: names the client's data.

        Raises:
            PrivacyError: it would pass the budget, or cannot be written. It must then not leave.
        """
        self.check(ledger, client_id)
        unit = client_unit(client_id)
        ledger.book(self.next_release, unit=unit, server_round=server_round, run_id=run_id, dataset=dataset)

    def spent(self, ledger: Ledger, client_id: int) -> float:
        """Return the epsilon of all replies of this client in the ledger, at the promised delta."""
        return ledger.epsilon(client_unit(client_id), self.delta)

    def perturb(
        self, sent: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], noise: Noise | None = None
    ) -> Tensors:
        """Return what may leave the client in place of the trained tensors.

        Args:
            sent: what trains and goes back, as it was before training.
            after: the same tensors after training. A change that is not finite counts as zero, so that a failure
                does not show.
            noise: where noise comes from; the operating system unless a test says otherwise.

        Returns:
            ``sent`` plus the clipped and noised change, in the dtypes of ``sent``, in sorted order.

        Raises:
            PrivacyError: a tensor holds no floats, or names or shapes differ.
        """
        before = canonical(sent)
        _check(before, after)
        with np.errstate(over="ignore", invalid="ignore"):
            change = {key: after[key].astype(np.float64) - before[key] for key in before}
        norm = sound_norm(change, before)
        if norm is None:
            change, norm = {key: np.zeros(value.shape) for key, value in before.items()}, 0.0
        short, source = shortened(change, norm, self.clip_norm), noise or SecureNormal()
        with np.errstate(over="ignore"):
            return {
                key: (value + short[key] + source.draw(value.shape, std=self.std)).astype(value.dtype)
                for key, value in before.items()
            }

    def statement(self) -> PrivacyStatement:
        """Return what the run promises a client that takes part in every round."""
        planned = [Release(noise_multiplier=self.noise_multiplier, steps=self.rounds, kind="full")]
        bound, by_rdp = epsilon(planned, self.delta), epsilon(planned, self.delta, accountant="rdp")
        return PrivacyStatement(
            unit="one client, from everybody else",
            adjacency="replace all data of one client by any other",
            mechanism=f"the client clips its change as one vector and noises it (standard deviation {self.std:.4g})",
            sampling="none: the server knows who takes part, and a client may do so in every round",
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=1.0,
            steps=self.rounds,
            delta=self.delta,
            epsilon=bound,
            epsilon_rdp=by_rdp,
            accountant=named(bound, by_rdp),
            trust="nobody: what leaves a client is private already",
            not_covered=NOT_COVERED,
            warnings=delta_warnings(self.delta, self.num_clients),
        )


def _check(before: Tensors, after: Mapping[str, np.ndarray]) -> None:
    """Refuse what cannot be noised soundly.

    Raises:
        PrivacyError: a tensor holds no floats, or names or shapes differ.
    """
    if before.keys() != after.keys() or any(after[key].shape != value.shape for key, value in before.items()):
        raise PrivacyError("the trained tensors have other names or shapes than the sent ones: nothing is sent")
    for key, value in before.items():
        if value.dtype not in (np.float32, np.float64):
            raise PrivacyError(
                f"local privacy noises float32 and float64 tensors, {key} is {value.dtype} "
                "(choose a method whose adapter trains in float32, or privacy=none)"
            )
