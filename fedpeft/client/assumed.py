"""What stands for data and fleet where there is neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.core.errors import ConfigError
from fedpeft.device_profiles.schema import DeviceProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What only the data would tell.

    Args:
        seq_len: tokens of every batch's longest text, None for the longest that the config allows.
        num_examples: training examples of a client, None where ``client.local_steps`` counts the steps.
        num_labels: classes of a classification.
        learned: share of a language model's tokens that are learned.

    Raises:
        ConfigError: a number is out of range; all problems together.
    """

    seq_len: int | None = None
    num_examples: int | None = None
    num_labels: int = 2
    learned: float = 1.0

    def __post_init__(self) -> None:
        checks = [
            (self.seq_len is None or self.seq_len >= 1, f"seq_len must be >= 1, got {self.seq_len} (set --seq-len)"),
            (
                self.num_examples is None or self.num_examples >= 1,
                f"examples must be >= 1, got {self.num_examples} (set --examples)",
            ),
            (self.num_labels >= 2, f"labels must be >= 2, got {self.num_labels} (set --labels)"),
            (0 < self.learned <= 1, f"learned must be in (0, 1], got {self.learned:g} (set --learned)"),
        ]
        if problems := [message for ok, message in checks if not ok]:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Examples that are all alike: as many ``rows`` as clients hold together."""

    rows: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Devices without clients: their ``profiles`` by name."""

    profiles: Mapping[str, DeviceProfile]

    def profile(self, name: str) -> DeviceProfile:
        """Return one of them, as fleets do."""
        return self.profiles[name]
