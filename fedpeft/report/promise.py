"""``privacy.json`` as a frozen view: what a private run promises and what it has spent."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.report.fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyView:
    """What a run promises. Names are those of ``fedpeft.privacy.statement.PrivacyStatement``.

    Attributes:
        epsilon: what the planned releases will have spent, infinite without noise.
        spent: epsilon so far, of the client that has spent most; None where only clients know.
        releases: how many there were so far, of all clients together where each has its own.
        not_covered: sentences on what the promise does not cover.
        warnings: sentences on what makes it weak.
        noise_multiplier_most: the largest of the clients' where they differ; ``noise_multiplier`` is then the least.
        sampling_rate_least: the least of the clients' where they differ; ``sampling_rate`` is then the largest.
    """

    unit: str
    adjacency: str
    mechanism: str
    sampling: str
    trust: str
    accountant: str
    noise_multiplier: float | None
    clip_norm: float | None
    sampling_rate: float | None
    steps: int | None
    delta: float | None
    epsilon: float | None
    epsilon_rdp: float | None
    spent: float | None
    releases: int | None
    not_covered: tuple[str, ...]
    warnings: tuple[str, ...]
    noise_multiplier_most: float | None
    sampling_rate_least: float | None

    @property
    def hides_cohorts(self) -> bool:
        """Whether the promise counts on nobody learning who was in which cohort."""
        return self.unit.startswith("one client") and self.sampling_rate is not None and self.sampling_rate < 1

    @classmethod
    def read(cls, fields: Fields) -> PrivacyView:
        """Read the whole file. Raises ReportError where a type is wrong."""
        return cls(
            unit=fields.text("unit"),
            adjacency=fields.text("adjacency"),
            mechanism=fields.text("mechanism"),
            sampling=fields.text("sampling"),
            trust=fields.text("trust"),
            accountant=fields.text("accountant"),
            noise_multiplier=fields.number("noise_multiplier"),
            clip_norm=fields.number("clip_norm"),
            sampling_rate=fields.number("sampling_rate"),
            steps=fields.integer("steps"),
            delta=fields.number("delta"),
            epsilon=fields.epsilon("epsilon"),
            epsilon_rdp=fields.epsilon("epsilon_rdp"),
            spent=fields.epsilon("spent"),
            releases=fields.integer("releases"),
            not_covered=fields.names("not_covered"),
            warnings=fields.names("warnings"),
            noise_multiplier_most=fields.number("noise_multiplier_most"),
            sampling_rate_least=fields.number("sampling_rate_least"),
        )
