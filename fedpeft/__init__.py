"""fedpeft: federated parameter-efficient fine-tuning on Flower.

The names below are the public API; they load on first use, so that ``import fedpeft`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedpeft.core.version import __version__

if TYPE_CHECKING:
    from fedpeft.core.types import ClientInfo, ClientUpdate, Tensors
    from fedpeft.strategies.base import FedPeft

__all__ = ["ClientInfo", "ClientUpdate", "FedPeft", "Tensors", "__version__"]

_HOMES = {
    "ClientInfo": "fedpeft.core.types",
    "ClientUpdate": "fedpeft.core.types",
    "FedPeft": "fedpeft.strategies.base",
    "Tensors": "fedpeft.core.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
