"""The data that floors hand to each other. All of it is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Tensors = dict[str, np.ndarray]
"""Trainable tensors by the name Hugging Face peft saves them under, in sorted order."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one tensor must look like: shape and numpy dtype name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size of the values, without any header."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """What the server knows of one client, learned by a ``query.hello`` message.

    Attributes:
        client_id: stable number of the client, 0 .. num_clients - 1.
        node_id: Flower's transport id: random, only good for addressing messages.
        num_examples: training examples that the client holds.
        device: name of its device profile.
        rank: LoRA rank it trains with, None where the method has none.
        scaling: factor on its product B A.
        longest: tokens of its longest example, 0 where not known.
        profile: its own device profile as JSON, "" where its name says it all. Nobody has checked it.
    """

    client_id: int
    node_id: int
    num_examples: int
    device: str = "unknown"
    rank: int | None = None
    scaling: float = 1.0
    longest: int = 0
    profile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientUpdate:
    """One accepted reply: the tensors after local training and what came with them.

    Attributes:
        client: who sent it.
        tensors: what came back, after local training: sent keys in the shapes and dtypes in which they were sent.
        num_examples: the weight it asks for: a positive integer, less where a rule discounts it.
        metrics: finite numbers, e.g. ``train-loss``.
        sent: what the client was sent.
        layer_scores: one finite number for each layer, where the orders asked for ``probe=layers``.
    """

    client: ClientInfo
    tensors: Tensors
    num_examples: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    sent: Tensors = field(default_factory=dict)
    layer_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one exchange asks of a device.

    Attributes:
        flops: floating-point operations of the local computation.
        bytes_down: bytes from server to client.
        bytes_up: bytes from client to server.
        dtype: dtype of the matrix products, ``float32`` or ``bfloat16``.
        num_steps: optimiser steps (or evaluation batches).
        bytes_moved: bytes that its operations other than matrix products read and write in memory, 0 where not known.
        peak_memory_bytes: most that the process holds at once, the base model included; 0 where not known.
    """

    flops: float
    bytes_down: int
    bytes_up: int
    dtype: str = "float32"
    num_steps: int = 0
    bytes_moved: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Luck:
    """How one exchange differs from the expected one: factors on its seconds, 1 for just as expected."""

    down: float = 1.0
    compute: float = 1.0
    up: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one exchange is predicted to cost one device.

    Attributes:
        down_s, compute_s, up_s: seconds of download, local computation and upload.
        energy_j: joules drawn in these seconds, None where not known.
        peak_memory_mb: MiB held at once, None where not known.
    """

    down_s: float
    compute_s: float
    up_s: float
    energy_j: float | None = None
    peak_memory_mb: float | None = None

    @property
    def total_s(self) -> float:
        """Download, then compute, then upload."""
        return self.down_s + self.compute_s + self.up_s
