"""Who holds which rows: splits by the partitioners of flwr-datasets.

A partitioner sees a light dataset without texts. It may split by any of these columns:

    label        class id
    group        group id
    group_label  both in one, so that one Dirichlet draw skews domains and classes together
    ...          further columns of the source that the table kept (`Table.columns`)
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.seeds import rng
from fedpeft.data.table import Table, count_by_name

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

ROW = "row"
"""Column with the row number in the table."""

_OURS = (ROW, "label", "group", "group_label")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partition:
    """A finished split; rows of a client are looked up when they are asked for.

    Attributes:
        partitioner: holds the split.
        num_rows: rows of the table that was split.
        num_parts: parts that the partitioner made; more than clients where only the largest are clients.
    """

    partitioner: Partitioner
    num_rows: int
    num_parts: int
    _sizes: np.ndarray
    _parts: np.ndarray

    @property
    def num_clients(self) -> int:
        """Number of clients; ids are 0 .. num_clients - 1."""
        return len(self._sizes)

    def sizes(self) -> np.ndarray:
        """Return how many rows each client holds, int64 (num_clients,)."""
        return self._sizes.copy()

    @property
    def num_unassigned(self) -> int:
        """Rows that no client holds: some partitioners drop a remainder or classes nobody was given."""
        return self.num_rows - int(self._sizes.sum())

    def indices(self, client_id: int) -> np.ndarray:
        """Return the table's row numbers that one client holds, int64 (m,), in the partitioner's order.

        Args:
            client_id: 0 .. num_clients - 1.

        Raises:
            ConfigError: no such client.
        """
        if not 0 <= client_id < self.num_clients:
            raise ConfigError(f"client_id must be in 0..{self.num_clients - 1}, got {client_id}")
        part = self.partitioner.load_partition(int(self._parts[client_id]))
        return np.asarray(part.with_format("numpy")[ROW][:], dtype=np.int64)

    def counts(self, table: Table, client_id: int) -> dict[str, dict[str, int]]:
        """Return what one client holds: ``{"labels": {name: n}, "groups": {name: n}}``, without zeros.

        Args:
            table: the table that was split.
            client_id: 0 .. num_clients - 1.
        """
        rows = self.indices(client_id)
        return {
            "labels": count_by_name(table.labels[rows], table.label_names),
            "groups": count_by_name(table.groups[rows], table.group_names),
        }


def split_clients(table: Table, partitioner: Partitioner, num_clients: int, *, seed: int = 0) -> Partition:
    """Split the rows of ``table`` among clients.

    Rows are shuffled first, as ``FederatedDataset`` does: partitioners that cut the data into runs (IidPartitioner,
    LinearPartitioner) would otherwise hand out the order of the file, one domain after the other.

    NaturalIdPartitioner makes a part for each group of the data. Where there are more groups than clients, the groups
    with most rows become the clients, the largest first (on a tie the earlier group); nobody holds the rows of the
    others.

    Args:
        table: what to split.
        partitioner: a fresh one; it brings its own seed and its own parameters.
        num_clients: how many parts there must be; at least so many for natural groups.
        seed: of the shuffling.

    Raises:
        ConfigError: more clients than rows, another number of parts than clients, a client without rows, or the
            partitioner refused the table (unknown column, impossible sizes).

    Example:
        >>> from flwr_datasets.partitioner import IidPartitioner                       # doctest: +SKIP
        >>> split_clients(table, IidPartitioner(num_partitions=10), 10).indices(3)     # doctest: +SKIP
    """
    if num_clients < 1:
        raise ConfigError(f"num_clients must be at least 1, got {num_clients}")
    if num_clients > len(table):
        raise ConfigError(f"num_clients must be at most the {len(table)} training examples, got {num_clients}")
    name = type(partitioner).__name__
    columns = sorted({*_OURS, *table.columns} - {ROW})
    try:
        with _quiet():
            partitioner.dataset = _light_dataset(table, seed)
            num_parts = partitioner.num_partitions
            _check_num_parts(name, num_parts, num_clients)
            sizes = _sizes(partitioner, num_parts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"partition: {name} cannot split {len(table)} examples among {num_clients} clients: {reason} "
            f"(change its parameters or num_clients; it can split by {', '.join(columns)})"
        ) from error
    parts = np.arange(num_clients)
    if num_parts > num_clients:
        parts = np.argsort(-sizes, kind="stable")[:num_clients]
        sizes = sizes[parts]
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise ConfigError(
            f"partition: {name} leaves {len(empty)} of {num_clients} clients without examples, "
            f"first {empty[:5].tolist()}: "
            "lower num_clients, or make the split less skewed"
        )
    return Partition(partitioner=partitioner, num_rows=len(table), num_parts=num_parts, _sizes=sizes, _parts=parts)


def _light_dataset(table: Table, seed: int) -> Dataset:
    import datasets

    if taken := sorted(set(table.columns) & set(_OURS)):
        raise ConfigError(f"extra column {taken[0]!r} has a name that partitions use themselves: rename it in the data")
    order = rng(seed, "partition").permutation(len(table))
    columns = {"label": table.labels, "group": table.groups, "group_label": table.strata, **table.columns}
    shuffled = {name: values[order].tolist() for name, values in columns.items()}
    return datasets.Dataset.from_dict({ROW: order.tolist(), **shuffled})


def _check_num_parts(name: str, num_parts: int, num_clients: int) -> None:
    if num_parts == num_clients:
        return
    if "NaturalId" in name:
        if num_parts > num_clients:
            return
        raise ConfigError(
            f"partition: the data has {num_parts} natural parts and num_clients is {num_clients}: "
            f"set num_clients={num_parts} or fewer, or choose another partition"
        )
    raise ConfigError(
        f"partition: {name} makes {num_parts} parts and num_clients is {num_clients}: make both equal "
        "(num_partitions: ${num_clients})"
    )


def _sizes(partitioner: Partitioner, num_parts: int) -> np.ndarray:
    from flwr_datasets.partitioner import IidPartitioner

    if type(partitioner) is IidPartitioner:
        # The rule of Dataset.shard(contiguous=True), which it calls. Loading 10,000 parts to measure them takes 4 s.
        whole, rest = divmod(len(partitioner.dataset), num_parts)
        return whole + (np.arange(num_parts, dtype=np.int64) < rest)
    known = getattr(partitioner, "partition_id_to_indices", None)
    if known is not None and len(known) == num_parts:
        return np.array([len(known[part]) for part in range(num_parts)], dtype=np.int64)
    return np.array([len(partitioner.load_partition(part)) for part in range(num_parts)], dtype=np.int64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # NaturalIdPartitioner draws a progress bar on stderr with no way to turn it off, DirichletPartitioner warns of
    # every draw that it repeats (one that fails for good raises), and datasets calls deprecated parts of pyarrow.
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if warning.category is UserWarning and "min_partition_size" not in str(warning.message):
            warnings.warn(str(warning.message), stacklevel=4)
