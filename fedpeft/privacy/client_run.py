"""One run's client-level privacy: cohorts, releases, what they have spent, what survives a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedpeft.core.errors import PrivacyError
from fedpeft.core.tensors import canonical
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.privacy.accounting import Release, epsilon, named
from fedpeft.privacy.adaptive_clipping import AdaptiveClipping, unclipped_share, vector_noise_multiplier
from fedpeft.privacy.ledger import POPULATION, Budget, Ledger
from fedpeft.privacy.noise import SecureCoin, SecureNormal
from fedpeft.privacy.noised_mean import ClippedSum, Noise, clipped_sum, noised_mean
from fedpeft.privacy.settings import delta_warnings
from fedpeft.privacy.statement import PrivacyStatement

log = logging.getLogger(__name__)

StateValue = np.ndarray | int | float | str
EVERYBODY = -1
"""Client id of a release: it stands for the whole cohort and for nobody in it."""
NOT_COVERED = (
    "who was in which cohort, and how many answered: amplification by sampling counts on its staying with the server",
    "what clients say of themselves when they join (examples, device), and the time and size of their messages",
    "the data that the server itself evaluates and searches on",
)


class ClientLevelRun:
    """Carries out ``ClientLevel`` in one run; made by ``ClientLevel.plan``.

    The promise, for one client added to or removed from the N registered ones. Given the earlier releases, and the
    coins and the data of all others, a client moves the sum of a round by a vector of at most C if its coin says so,
    and by nothing otherwise. Its vector may depend on whatever it kept from earlier rounds (a personal factor, a
    codec's residual), and so on its earlier coins; but this round's coin is independent of those, so that the release
    is a mixture, over what it may have kept, of sampled Gaussian mechanisms of rate q and noise multiplier z.
    Divergences are quasi-convex, so none of the mixture's is above that of one such mechanism with a vector of length
    C, which is what is booked, and adaptive composition does the rest.

    It needs that no client's part depends on another's: each reply is checked and clipped by itself, members that did
    not answer are not replaced, and everybody in a round is sent the same.

    Args:
        epsilon: the budget; None for none.
        delta: of the promise.
        clip_norm: C in the first round.
        noise_multiplier: z, of all that is released in a round.
        adaptive: how C moves; None for not at all.
        rounds: how many releases are planned.
        cohort_size: q N.
        num_clients: N.

    Raises:
        ConfigError: the count of adaptive clipping would spend the budget alone.
    """

    def __init__(
        self,
        *,
        epsilon: float | None,
        delta: float,
        clip_norm: float,
        noise_multiplier: float,
        adaptive: AdaptiveClipping | None,
        rounds: int,
        cohort_size: int,
        num_clients: int,
    ) -> None:
        self.epsilon, self.delta, self.adaptive = epsilon, delta, adaptive
        self.rounds, self.cohort_size, self.num_clients = rounds, cohort_size, num_clients
        self.clip_norm, self.noise_multiplier = clip_norm, noise_multiplier
        self._said: dict[str, float] = {}
        # Refuses a count that would spend it all, before anybody trains.
        _ = self.vector_noise_multiplier

    @property
    def sampling_rate(self) -> float:
        """The chance q with which a client is in a cohort."""
        return self.cohort_size / self.num_clients

    @property
    def vector_noise_multiplier(self) -> float:
        """Standard deviation of the noise on the summed changes, over C: z, or more where a count is released too."""
        if self.adaptive is None:
            return self.noise_multiplier
        return vector_noise_multiplier(self.noise_multiplier, self._count_noise)

    @property
    def _count_noise(self) -> float:
        assert self.adaptive is not None
        return self.adaptive.count_noise_for(self.noise_multiplier, self.cohort_size)

    @property
    def next_release(self) -> Release:
        """What one round spends."""
        return Release(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate)

    # -- the way of one round ------------------------------------------------------------------------------------------

    def check(self, ledger: Ledger) -> None:
        """Refuse to begin a round whose release would pass the budget; the model of the last round stands.

        Raises:
            PrivacyError: the budget does not last for one more.
        """
        if self.epsilon is not None:
            Budget(epsilon=self.epsilon, delta=self.delta).check(ledger, POPULATION, self.next_release)

    def book(self, ledger: Ledger, *, server_round: int, run_id: str) -> None:
        """Write a round's release down, and return when it is on the disk; call ``release`` after that, never before.

        Raises:
            PrivacyError: it would pass the budget, or cannot be written. It must then not leave.
        """
        self.check(ledger)
        dataset = f"{self.num_clients} registered clients"
        ledger.book(self.next_release, unit=POPULATION, server_round=server_round, run_id=run_id, dataset=dataset)

    def spent(self, ledger: Ledger) -> float:
        """Return the epsilon of all releases in the ledger, at the promised delta."""
        return ledger.epsilon(POPULATION, self.delta)

    def cohort(self, clients: Sequence[ClientInfo], coin: SecureCoin | None = None) -> list[ClientInfo]:
        """Return a round's cohort: each client by a coin of its own; it may be empty.

        Coins are independent, so that it does not matter whether those of absent clients are tossed.

        Args:
            clients: who is there, by client id; ids beyond the registered ones are left out.
            coin: where coins come from; the operating system unless a test says otherwise.
        """
        tossed = (coin or SecureCoin()).subset(clients, self.sampling_rate)
        return [client for client in tossed if 0 <= client.client_id < self.num_clients]

    def release(
        self,
        sent: Tensors,
        updates: Sequence[ClientUpdate],
        *,
        returned: Sequence[str] | None = None,
        rank: int | None = None,
        scaling: float = 1.0,
        noise: Noise | None = None,
    ) -> ClientUpdate:
        """Return the one update that the strategy is given in place of the clients'.

        Args:
            sent: what every member of the cohort was sent, whether there was one or not.
            updates: the replies that the guard took, of different clients; none will do.
            returned: names of what trains and comes back; None for all that was sent.
            rank: rank of the factors that were sent.
            scaling: factor on their product.
            noise: where noise comes from; the operating system unless a test says otherwise.

        Returns:
            The update of a client ``EVERYBODY`` with one example and no metrics, whose tensors are what was sent plus
            the noised mean change.

        Raises:
            PrivacyError: clients were sent different tensors, one answers twice, or a tensor holds no floats.
        """
        before = canonical({key: sent[key] for key in (sent if returned is None else returned)})
        _check_floats(before)
        _check_alike(sent, updates)
        summed = clipped_sum(_changes(before, updates), before, self.clip_norm)
        if summed.num_unusable:
            log.warning("changes with NaN, infinity or other tensors, counted as zero: %d", summed.num_unusable)
        source = noise or SecureNormal()
        mean = noised_mean(
            summed.total,
            clip_norm=self.clip_norm,
            noise_multiplier=self.vector_noise_multiplier,
            denominator=self.cohort_size,
            noise=source,
        )
        self._said = {"clip_norm": self.clip_norm}
        self._adapt(summed, source)
        with np.errstate(over="ignore"):
            tensors = {key: (value + mean[key]).astype(value.dtype) for key, value in before.items()}
        everybody = ClientInfo(client_id=EVERYBODY, node_id=EVERYBODY, num_examples=1, rank=rank, scaling=scaling)
        return ClientUpdate(client=everybody, tensors=tensors, num_examples=1, sent=sent)

    def _adapt(self, summed: ClippedSum, noise: Noise) -> None:
        if self.adaptive is None:
            return
        share = unclipped_share(
            summed.num_unclipped,
            summed.num_clipped,
            count_noise=self._count_noise,
            expected_cohort=self.cohort_size,
            draw=float(noise.draw(1)[0]),
        )
        self.clip_norm = self.adaptive.moved(self.clip_norm, share)
        self._said["unclipped_share"] = share

    # -- what is said and kept -----------------------------------------------------------------------------------------

    def notes(self) -> Mapping[str, float]:
        """Return what may be told of the last release: the clip norm, and the noised share that was not clipped."""
        return self._said

    def statement(self) -> PrivacyStatement:
        """Return what the run promises, all planned rounds taken together."""
        planned = [Release(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=self.rounds)]
        clipping = "changes clipped as one vector"
        if self.adaptive is not None:
            clipping += (
                f" to a norm that follows a noised quantile (the count's noise {self._count_noise:g} is paid for by "
                f"{self.vector_noise_multiplier:.4g} on the changes)"
            )
        bound, by_rdp = epsilon(planned, self.delta), epsilon(planned, self.delta, accountant="rdp")
        return PrivacyStatement(
            unit="one client",
            adjacency="add or remove one client with all its data, in all its rounds",
            mechanism=f"{clipping}, summed, noised at the server, divided by {self.cohort_size}; equal weights",
            sampling=f"Poisson cohorts of {self.cohort_size} expected among {self.num_clients} registered clients",
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            steps=self.rounds,
            delta=self.delta,
            epsilon=bound,
            epsilon_rdp=by_rdp,
            accountant=named(bound, by_rdp),
            trust="the server, which sees every client's update; whoever sees the models only is what it protects from",
            not_covered=NOT_COVERED,
            warnings=delta_warnings(self.delta, self.num_clients),
        )

    def state(self) -> dict[str, StateValue]:
        """Return what a resumed run goes on with: the clip norm, and the noise multiplier as it was first planned."""
        return {"clip_norm": self.clip_norm, "noise_multiplier": self.noise_multiplier}

    def load_state(self, state: Mapping[str, StateValue]) -> None:
        """Take back what ``state`` returned."""
        self.clip_norm, self.noise_multiplier = (float(state[name]) for name in ("clip_norm", "noise_multiplier"))


def _changes(before: Tensors, updates: Sequence[ClientUpdate]) -> Iterator[Tensors]:
    """Yield each client's change in float64, by the names and shapes of what was sent; {} where a reply has others."""
    for one in updates:
        fits = one.tensors.keys() == before.keys() and all(one.tensors[k].shape == before[k].shape for k in before)
        with np.errstate(over="ignore", invalid="ignore"):
            yield {key: one.tensors[key].astype(np.float64) - before[key] for key in before} if fits else {}


def _check_floats(before: Tensors) -> None:
    """Refuse tensors to which no Gaussian noise can be added.

    Raises:
        PrivacyError: a tensor holds integers, complex numbers or others.
    """
    for key, value in before.items():
        if value.dtype not in (np.float32, np.float64):
            raise PrivacyError(
                f"client-level privacy noises float32 and float64 tensors, {key} is {value.dtype} "
                "(choose a method whose adapter trains in float32, or privacy=none)"
            )


def _check_alike(sent: Tensors, updates: Sequence[ClientUpdate]) -> None:
    """Refuse updates whose clipped sum would not have the sensitivity that is booked.

    Raises:
        PrivacyError: a client was sent something else, or answers twice.
    """
    ids = [one.client.client_id for one in updates]
    if len(set(ids)) < len(ids):
        raise PrivacyError(f"a client answered twice in one round, got updates of {sorted(ids)} (one each is summed)")
    for one in updates:
        if one.sent is sent:
            continue
        same = one.sent.keys() == sent.keys()
        if not same or not all(one.sent[key] is sent[key] or np.array_equal(one.sent[key], sent[key]) for key in sent):
            raise PrivacyError(
                f"client {one.client.client_id} was sent other tensors than the cohort, so that their changes have no "
                "common sum (choose a strategy that sends everybody the same, e.g. strategy=fedavg, and one rank)"
            )
