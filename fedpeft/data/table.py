"""Texts or conversations in memory, the form that splits and tasks work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedpeft.core.errors import DataError

Text = tuple[str, ...]
"""One text, or a pair of texts."""
Conversation = tuple[tuple[str, str], ...]
"""Messages in order, each (role, content); roles are those of chat templates: system, user, assistant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Texts with a class and a group each; row i of everything belongs together.

    Attributes:
        texts: one text, a pair of texts or a conversation for each row; the same for all.
        labels: int64 (n,), class ids 0 .. len(label_names) - 1; zeros without classes.
        label_names: names of the classes; a class may have no row here. () for texts without classes.
        groups: int64 (n,), 0 .. len(group_names) - 1: domain, speaker, hospital ...
        group_names: names of the groups.
        columns: further columns by name, each (n,), for partitioners that split by them.

    Raises:
        DataError: lengths differ, or a class or group id has no name.

    Example:
        >>> import numpy as np
        >>> table = Table(
        ...     texts=[("good",), ("bad",)], labels=np.array([1, 0]), label_names=("negative", "positive"),
        ...     groups=np.zeros(2, dtype=np.int64), group_names=("all",),
        ... )
        >>> len(table.take([1])), table.take([1]).texts
        (1, [('bad',)])
    """

    texts: Sequence[Text | Conversation]
    labels: np.ndarray
    label_names: tuple[str, ...]
    groups: np.ndarray
    group_names: tuple[str, ...]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {"texts": len(self.texts), "labels": len(self.labels), "groups": len(self.groups)}
        lengths |= {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"columns of one table must be equally long, got {lengths}")
        for what, ids, names in (("label", self.labels, self.label_names), ("group", self.groups, self.group_names)):
            most = max(len(names) - 1, 0)
            if len(ids) and not (ids.min() >= 0 and ids.max() <= most):
                raise DataError(f"{what} ids must be in 0..{most}, got {ids.min()}..{ids.max()}")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.texts)

    @property
    def strata(self) -> np.ndarray:
        """Group and class in one number, int64 (n,): equal where both are."""
        strata: np.ndarray = self.groups * max(len(self.label_names), 1) + self.labels
        return strata

    def take(self, rows: np.ndarray | list[int]) -> Table:
        """Return a new table of the given rows, in their order, with the same names.

        Args:
            rows: row numbers, int (m,).
        """
        chosen = np.asarray(rows, dtype=np.int64)
        return Table(
            texts=[self.texts[row] for row in chosen],
            labels=self.labels[chosen],
            label_names=self.label_names,
            groups=self.groups[chosen],
            group_names=self.group_names,
            columns={name: values[chosen] for name, values in self.columns.items()},
        )


def count_by_name(ids: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
    """Return how many of ``ids`` carry each name; names that none carries are left out. {} without names."""
    if not names:
        return {}
    counts = np.bincount(ids, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
