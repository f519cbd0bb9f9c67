"""Small federations for the laws of strategies: the tensors that a strategy's method would have, and honest clients.

A world is made for a strategy class from what it requires: LoRA pairs of two shapes and a head, or masked values, core
matrices, prompts by layer. Clients differ in rank where the strategy says that they may.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml
from fake_grid import trained

from fedpeft.core.masks import mask_size
from fedpeft.core.orders import CONTROL, MERGE, Orders
from fedpeft.core.pairs import lora_pairs
from fedpeft.core.paths import conf_dir
from fedpeft.core.ranks import RankPlan
from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
from fedpeft.strategies import base
from fedpeft.strategies.base import FedPeft

ALPHA = 6.0
RANK = 3
SHAPES = {"base_model.model.layer.0.query": (5, 4), "base_model.model.layer.1.value": (4, 6)}
HEAD = "base_model.model.classifier.weight"
DEVICES = ("large", "small", "middle")
RANKS = {"large": 3, "middle": 2, "small": 1}
DENSITY = 0.25
"""Share of a weight that masks cover: 5 and 6 places."""


def defined(beside: ModuleType, root: type[Any]) -> list[type[Any]]:
    """Return every class below ``root`` that a file beside a module defines; what is only to be built on is none."""
    folder = Path(str(beside.__file__)).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "base"))
    modules = [importlib.import_module(f"{beside.__package__}.{name}") for name in names]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, root)
        and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
    ]


def strategies() -> list[type[FedPeft]]:
    """Return every strategy class."""
    return defined(base, FedPeft)


def settings(kind: type[FedPeft]) -> dict[str, Any]:
    """Return what the strategy's YAML sets, without what the run decides."""
    for path in sorted((conf_dir() / "strategy").glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        if node["_target_"] == f"{kind.__module__}.{kind.__qualname__}":
            own = {
                k: v
                for k, v in node.items()
                if k not in ("_target_", "defaults") and not (isinstance(v, str) and v.startswith("${"))
            }
            return {**own, "density": DENSITY} if "sparse" in kind.requires else own
    return {}


@dataclass(frozen=True)
class World:
    """A strategy's surroundings.

    Attributes:
        tensors: the global tensors before round 1.
        ranks: ranks of the devices.
        mixed: whether clients differ in rank.
    """

    tensors: Tensors
    ranks: RankPlan
    mixed: bool

    def client(self, client_id: int) -> ClientInfo:
        """Return a client; without mixed ranks all have the largest."""
        device = DEVICES[client_id % 3] if self.mixed else "large"
        info = ClientInfo(client_id=client_id, node_id=100 - client_id, num_examples=3 + client_id, device=device)
        return self.ranks.assign(info)

    def enter(self, strategy: FedPeft, server_round: int = 1, clients: int = 5) -> None:
        """Show a strategy the round that it is in, as the server does."""
        asked = tuple(self.client(i) for i in range(clients))
        strategy.view = replace(strategy.view, ranks=self.ranks, server_round=server_round, asked=asked)


def world(kind: type[FedPeft], mixed: bool | None = None) -> World:
    """Return the world of a strategy, with mixed ranks where it bears them unless told otherwise."""
    rng = np.random.default_rng(7)
    tensors: Tensors = {HEAD: rng.normal(size=(2, 4)).astype(np.float32)}
    for module, (m, n) in SHAPES.items():
        if "layers" in kind.requires:
            for layer in range(4):
                tensors[f"base_model.model.prefix.layers.{layer}.key_value"] = rng.normal(size=(2, 6)).astype(
                    np.float32
                )
            break
        tensors[f"{module}.lora_A.weight"] = rng.normal(size=(RANK, n)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = rng.normal(size=(m, RANK)).astype(np.float32)
        if "sparse" in kind.requires:
            tensors[f"{module}.sparse_values"] = np.zeros(mask_size((m, n), DENSITY), np.float32)
        if "core" in kind.requires:
            tensors[f"{module}.lora_R.weight"] = rng.normal(size=(RANK, RANK)).astype(np.float32)
    mixed = kind.mixed_ranks if mixed is None else mixed
    plan = RankPlan(rank=RANK, default=RANK, by_device=RANKS if mixed else {}, scaling_for=lambda rank: ALPHA / rank)
    return World(tensors={key: tensors[key] for key in sorted(tensors)}, ranks=plan, mixed=mixed)


def update(
    strategy: FedPeft, here: World, client_id: int, *, like: int | None = None, server_round: int = 1
) -> ClientUpdate:
    """Return a client's update on what the strategy sends it; ``like`` makes it train as another client would."""
    client = here.client(client_id)
    sent = dict(strategy.client_tensors(here.tensors, client))
    config = strategy.client_config(client)
    tensors = trained(client_id if like is None else like, sent, server_round, Orders.read(config))
    for value in (*tensors.values(), *sent.values()):
        value.flags.writeable = False
    scores = tuple(float(1 + (client_id + layer) % 4) for layer in range(4))
    return ClientUpdate(
        client=client,
        tensors=tensors,
        num_examples=3 + client_id,
        metrics={"train-loss": 1.0, "train-steps": 2 + client_id, "layer-share": 0.5},
        sent=sent,
        layer_scores=scores if "layers" in type(strategy).requires else (),
    )


def change(tensors: Tensors, scaling: float) -> dict[str, np.ndarray]:
    """Return what tensors do to the model: the dense change of each adapted weight, and all other tensors as they are.

    ``scaling B A`` (``scaling B R A`` with a core), plus merged factors, in float64.
    """
    own = {k: v.astype(np.float64) for k, v in tensors.items() if not k.startswith((MERGE, CONTROL))}
    merge = {k.removeprefix(MERGE): v.astype(np.float64) for k, v in tensors.items() if k.startswith(MERGE)}
    effect: dict[str, np.ndarray] = {}
    for pair in lora_pairs(own, strict=False):
        b, a = own.pop(pair.b), own.pop(pair.a)
        core = own.pop(f"{pair.module}.lora_R.weight", np.eye(a.shape[0]))
        effect[pair.module] = scaling * b @ core @ a
    for pair in lora_pairs(merge):
        effect[pair.module] = effect.get(pair.module, 0.0) + merge[pair.b] @ merge[pair.a]
    return {**effect, **own}


def change_of_client(here: World, sent_back: ClientUpdate) -> dict[str, np.ndarray]:
    """Return what a client's model is after training: what it was sent, with what it trained."""
    rank = sent_back.client.rank or RANK
    start = dict(here.tensors)
    for pair in lora_pairs(start, strict=False):
        start[pair.a], start[pair.b] = start[pair.a][:rank], start[pair.b][:, :rank]
    return change({**start, **sent_back.sent, **sent_back.tensors}, sent_back.client.scaling)


def weighted_change(here: World, updates: list[ClientUpdate]) -> dict[str, np.ndarray]:
    """Return sum_k p_k of the clients' models, p_k by examples: what an exact rule gives."""
    total = sum(one.num_examples for one in updates)
    parts = [(one.num_examples / total, change_of_client(here, one)) for one in updates]
    return {key: sum(p * part[key] for p, part in parts) for key in parts[0][1]}


def relative_error(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """Return the largest relative Frobenius error over all tensors."""
    assert set(got) == set(wanted)
    return max(
        float(np.linalg.norm(got[key] - wanted[key]) / max(np.linalg.norm(wanted[key]), 1e-30)) for key in wanted
    )
