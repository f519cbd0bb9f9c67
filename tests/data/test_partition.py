"""Laws that every partition of conf/partition obeys, then numbers, then refusals."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from flwr_datasets.partitioner import Partitioner
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedpeft.core.errors import ConfigError
from fedpeft.data.partition import Partition, split_clients
from fedpeft.data.table import Table

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "partition").glob("*.yaml"))
NUM_GROUPS = 4
TEXTS = [("t",)]

# The pathological split of a table with more classes than its clients are given says so; one test checks that it does.
pytestmark = pytest.mark.filterwarnings("ignore:Classes")


def _table(n: int = 400, columns: dict[str, np.ndarray] | None = None) -> Table:
    """Rows in file order as real data has them: one group after the other, labels alternating."""
    return Table(
        texts=TEXTS * n,
        labels=np.arange(n, dtype=np.int64) % 2,
        label_names=("no", "yes"),
        groups=np.arange(n, dtype=np.int64) * NUM_GROUPS // n,
        group_names=("a", "b", "c", "d"),
        columns=columns or {},
    )


def _partitioner(config: Path, num_clients: int, seed: int = 0) -> Partitioner:
    settings = OmegaConf.create({"num_clients": num_clients, "seed": seed, "partition": OmegaConf.load(config)})
    return instantiate(settings.partition)


def _count(config: Path) -> int:
    """A pool is one client; the others make four of the table's four groups."""
    return 1 if config.stem == "pooled" else NUM_GROUPS


def _members(config: Path, seed: int = 0) -> list[list[int]]:
    count = _count(config)
    partition = split_clients(_table(), _partitioner(config, count, seed), count, seed=seed)
    return [partition.indices(client).tolist() for client in range(count)]


def test_all_configs_are_found() -> None:
    assert {path.stem for path in CONFIGS} == {
        "iid", "dirichlet", "natural", "pathological", "pooled", "quantity_skew", "shard"
    }  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_row_has_at_most_one_owner_and_sizes_are_true(config: Path) -> None:
    count = _count(config)
    partition = split_clients(_table(), _partitioner(config, count), count)
    members = [partition.indices(client) for client in range(count)]
    rows = np.concatenate(members)
    assert len(np.unique(rows)) == len(rows) and rows.min() >= 0 and rows.max() < 400 and rows.dtype == np.int64
    assert partition.sizes().tolist() == [len(part) for part in members] and partition.sizes().min() >= 1
    assert partition.num_unassigned == 400 - len(rows) and partition.num_clients == count


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_equal_seeds_give_equal_splits_in_any_order_of_asking(config: Path) -> None:
    """The second partition is asked backwards."""
    count = _count(config)
    again = split_clients(_table(), _partitioner(config, count), count)
    backwards = [again.indices(client).tolist() for client in reversed(range(count))]
    assert _members(config) == backwards[::-1]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_another_seed_gives_another_split(config: Path) -> None:
    """Natural parts, pooled or not, hold the same rows under every seed; only their order may differ."""
    one, other = _members(config, seed=0), _members(config, seed=1)
    same = [sorted(part) for part in one] == [sorted(part) for part in other]
    assert same == (config.stem in ("natural", "pooled"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_counts_add_up_to_sizes(config: Path) -> None:
    table = _table()
    count = _count(config)
    partition = split_clients(table, _partitioner(config, count), count)
    for client, size in enumerate(partition.sizes()):
        counts = partition.counts(table, client)
        assert sum(counts["labels"].values()) == sum(counts["groups"].values()) == size


def _split(name: str, num_clients: int, n: int = 400) -> Partition:
    config = next(path for path in CONFIGS if path.stem == name)
    return split_clients(_table(n), _partitioner(config, num_clients), num_clients)


def test_iid_does_not_follow_the_order_of_the_file() -> None:
    """Unshuffled, client 0 would hold group a only. Shuffled it holds 25 of each, give or take 3.8 (hypergeometric)."""
    counts = _split("iid", 4).counts(_table(), 0)
    assert all(10 < counts["groups"][name] < 40 for name in "abcd") and sum(counts["groups"].values()) == 100


def test_natural_gives_each_group_to_one_client() -> None:
    partition = _split("natural", NUM_GROUPS)
    assert [partition.counts(_table(), client)["groups"] for client in range(NUM_GROUPS)] == [
        {"a": 100}, {"b": 100}, {"c": 100}, {"d": 100}
    ]  # fmt: skip


def test_quantity_skew_is_linear() -> None:
    """400 rows in shares 1 : 2 : 3 : 4 of ten."""
    assert _split("quantity_skew", 4).sizes().tolist() == [40, 80, 120, 160]


def test_pathological_clients_hold_two_pairs_of_group_and_label() -> None:
    table, partition = _table(), _split("pathological", 16)
    for client in range(16):
        rows = partition.indices(client)
        assert len(set(zip(table.groups[rows].tolist(), table.labels[rows].tolist(), strict=True))) == 2
    assert partition.num_unassigned == 0


def test_shards_are_equal_and_pure() -> None:
    """400 rows in 8 pairs of 50; 8 clients x 2 shards of 25: two shards to a pair, so each shard holds one pair."""
    table, partition = _table(), _split("shard", 8)
    assert partition.sizes().tolist() == [50] * 8
    pairs = [set((table.groups * 2 + table.labels)[partition.indices(client)].tolist()) for client in range(8)]
    assert all(len(held) <= 2 for held in pairs)


def test_dirichlet_skews_groups_and_labels() -> None:
    """Iid halves would be within 0.35..0.65 nearly surely; at alpha 0.5 some of 8 clients lie far outside in both."""
    table, partition = _table(2000), _split("dirichlet", 8, n=2000)
    rows = [partition.indices(client) for client in range(8)]
    positive = np.array([table.labels[part].mean() for part in rows])
    first_half = np.array([(table.groups[part] < 2).mean() for part in rows])
    assert np.abs(positive - 0.5).max() > 0.15 and np.abs(first_half - 0.5).max() > 0.15


def test_further_columns_can_be_split_by() -> None:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    table = _table(6, {"user": np.array(["u", "v", "w", "u", "v", "w"])})
    partition = split_clients(table, NaturalIdPartitioner(partition_by="user"), 3)
    assert [sorted(partition.indices(client).tolist()) for client in range(3)] == [[0, 3], [1, 4], [2, 5]]


def test_ten_thousand_clients_are_fast_and_their_sizes_true() -> None:
    """Measured: 0.02 s against 4 s when every part is loaded to be counted. 25,003 = 10,000 x 2 + 5,003."""
    started = time.process_time()
    partition = _split("iid", 10_000, n=25_003)
    assert time.process_time() - started < 2
    sizes = partition.sizes()
    assert sizes.sum() == 25_003 and sizes.tolist() == [3] * 5003 + [2] * 4997
    for client in (0, 5002, 5003, 9999):
        assert len(partition.indices(client)) == sizes[client]


def test_noise_of_partitioners_is_kept_from_users(capfd: pytest.CaptureFixture[str]) -> None:
    from flwr_datasets.partitioner import DirichletPartitioner

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("natural", "dirichlet", "shard"):
            _split(name, NUM_GROUPS)
        # The first two draws of this seed leave a client with fewer than 20 rows, the third does not.
        split_clients(_table(), DirichletPartitioner(8, "label", 0.5, min_partition_size=20, seed=12), 8)
    assert capfd.readouterr() == ("", "")


def test_a_warning_of_lost_classes_reaches_users() -> None:
    from flwr_datasets.partitioner import PathologicalPartitioner

    with pytest.warns(UserWarning, match="will NOT be used"):
        partition = split_clients(_table(), PathologicalPartitioner(2, "group_label", 1, seed=0), 2)
    assert partition.num_unassigned == 300


@pytest.mark.parametrize(
    ("name", "num_clients", "match"),
    [
        ("iid", 401, "at most the 400 training examples, got 401"),
        ("iid", 0, "at least 1, got 0"),
        ("natural", 5, "4 natural parts and num_clients is 5: set num_clients=4"),
        ("quantity_skew", 100, "LinearPartitioner cannot split 400 examples among 100 clients"),
        ("dirichlet", 390, "DirichletPartitioner cannot split .*change its parameters or num_clients"),
    ],
)
def test_splits_that_cannot_be(name: str, num_clients: int, match: str) -> None:
    partitioner = _partitioner(next(path for path in CONFIGS if path.stem == name), max(num_clients, 1))
    with pytest.raises(ConfigError, match=match) as error:
        split_clients(_table(), partitioner, num_clients)
    assert len(error.value.problems) == 1 and "\n" not in str(error.value)


def test_other_refusals() -> None:
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    with pytest.raises(ConfigError, match=r"IidPartitioner makes 3 parts and num_clients is 4.*\$\{num_clients\}"):
        split_clients(_table(), IidPartitioner(3), 4)
    with pytest.raises(ConfigError, match=r"Column .nope. not in .*it can split by group, group_label, label"):
        split_clients(_table(), DirichletPartitioner(3, "nope", 0.5), 3)
    with pytest.raises(ConfigError, match=r"leaves \d+ of 300 clients without .*first \[\d+, \d+, \d+, \d+, \d+\]"):
        split_clients(_table(), DirichletPartitioner(300, "label", 0.1, min_partition_size=0), 300)
    with pytest.raises(ConfigError, match="'group' has a name that partitions use themselves"):
        split_clients(_table(6, {"group": np.arange(6)}), IidPartitioner(2), 2)
    with pytest.raises(ConfigError, match=r"client_id must be in 0\.\.1, got 2"):
        split_clients(_table(), IidPartitioner(2), 2).indices(2)
