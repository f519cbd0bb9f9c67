"""Which layer a tensor belongs to, by its name."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise


def layer_name(key: str) -> str | None:
    """Return the name and number of the layer in a tensor's name, None where there is none: a head, an embedding.

    Example:
        >>> layer_name("base_model.model.prefix.layers.3.key_value"), layer_name("base_model.model.classifier.weight")
        ('layers.3', None)
    """
    parts = key.split(".")
    return next((f"{one}.{two}" for one, two in pairwise(parts) if two.isdecimal()), None)


def layers_of(keys: Iterable[str]) -> dict[int, tuple[str, ...]]:
    """Return the layers that tensors belong to, by number: the names by which ``core.orders.matches`` finds them.

    Example:
        >>> layers_of(["h.0.b.weight", "h.0.a.weight", "h.11.a.weight", "head.weight"])
        {0: ('h.0',), 11: ('h.11',)}
    """
    names = sorted({name for key in keys if (name := layer_name(key))})
    numbers = sorted({int(name.rsplit(".", 1)[1]) for name in names})
    return {n: tuple(name for name in names if int(name.rsplit(".", 1)[1]) == n) for n in numbers}
