"""The pooled partition holds exactly what the largest natural clients hold together."""

from __future__ import annotations

import numpy as np
import pytest
from flwr_datasets.partitioner import NaturalIdPartitioner

from fedpeft.core.errors import ConfigError
from fedpeft.data.partition import split_clients
from fedpeft.data.pooled import PooledPartitioner
from fedpeft.data.table import Table


def table() -> Table:
    """Groups a, b, c, d with 5, 2, 4, 2 rows."""
    groups = np.repeat([0, 1, 2, 3], [5, 2, 4, 2])
    return Table(
        texts=[(str(row),) for row in range(13)],
        labels=np.arange(13) % 2,
        label_names=("no", "yes"),
        groups=groups,
        group_names=("a", "b", "c", "d"),
        columns={},
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_it_pools_the_natural_clients(count: int) -> None:
    natural = split_clients(table(), NaturalIdPartitioner(partition_by="group"), count, seed=3)
    pooled = split_clients(table(), PooledPartitioner("group", count), 1, seed=3)
    together = np.concatenate([natural.indices(client) for client in range(count)])
    assert sorted(pooled.indices(0)) == sorted(together)
    assert pooled.sizes().tolist() == [len(together)]


def test_more_groups_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are 4 groups, 5 are to be pooled"):
        split_clients(table(), PooledPartitioner("group", 5), 1)
    with pytest.raises(ValueError, match="num_groups must be at least 1"):
        PooledPartitioner("group", 0)
