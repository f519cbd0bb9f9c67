"""A partitioner for the centralised baseline of natural users."""

from __future__ import annotations

from collections import Counter

from datasets import Dataset
from flwr_datasets.partitioner import Partitioner


class PooledPartitioner(Partitioner):
    """Gives one client the rows of the groups with most rows: what ``partition=natural`` spreads over as many clients.

    Args:
        partition_by: column of the groups.
        num_groups: how many groups are pooled, the largest first; on a tie the one that sorts first.
    """

    def __init__(self, partition_by: str, num_groups: int) -> None:
        super().__init__()
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups} (set partition.num_groups)")
        self._partition_by = partition_by
        self._num_groups = num_groups

    @property
    def num_partitions(self) -> int:
        """One."""
        return 1

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the pooled rows, in their order."""
        groups = self.dataset[self._partition_by]
        by_size = sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))
        if len(by_size) < self._num_groups:
            raise ValueError(f"there are {len(by_size)} groups, {self._num_groups} are to be pooled")
        chosen = {group for group, _ in by_size[: self._num_groups]}
        return self.dataset.select([row for row, group in enumerate(groups) if group in chosen])
