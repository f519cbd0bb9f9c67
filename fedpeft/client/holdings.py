"""Who holds what, for the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.client.own import HeldElsewhere
from fedpeft.client.runtime import Runtime
from fedpeft.data.table import count_by_name
from fedpeft.device_profiles.fit import usable_mb


def describe_data(runtime: Runtime, most: int = 200) -> dict[str, Any]:
    """Return who holds what, for the report: totals, and of the first ``most`` clients labels, groups and memory.

    Of a private run's clients it tells the device alone: their counts carry no noise. What real devices hold is theirs.
    """
    if isinstance(runtime.examples.partition, HeldElsewhere):
        return {**_totals(runtime), "clients": [], "usable_memory_mb": {}}
    data, fleet = runtime.examples, cfg.build(runtime.config["fleet"])
    devices = sorted({runtime.devices[i] for i in range(min(most, runtime.config["num_clients"]))})
    clients = []
    for client_id in range(min(most, runtime.config["num_clients"])):
        known = {"client_id": client_id, "device": runtime.devices[client_id]}
        if runtime.privacy is not None:
            clients.append(known)
            continue
        rows = np.concatenate(runtime.client_rows(client_id))
        clients.append({
            **known,
            "num_examples": len(rows),
            "labels": count_by_name(data.task.labels[rows], data.label_names),
            "groups": count_by_name(data.task.groups[rows], data.group_names),
        })  # fmt: skip
    return {
        **_totals(runtime),
        "clients": clients,
        "usable_memory_mb": {name: round(usable_mb(fleet.profile(name)), 1) for name in devices},
    }


def _totals(runtime: Runtime) -> dict[str, Any]:
    data = runtime.examples
    return {
        "num_clients": runtime.config["num_clients"],
        "num_train": int(data.partition.sizes().sum()),
        "num_eval": len(data.eval_rows),
        "labels": list(data.label_names),
        "groups": list(data.group_names),
    }
