"""FedSA-LoRA (Guo et al. 2024, arXiv:2410.01463): A shared, B personal."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.core.orders import Orders
from fedpeft.core.pairs import B_SUFFIX
from fedpeft.core.traits import FACTORS
from fedpeft.core.types import ClientInfo, Tensors
from fedpeft.core.wire import ConfigValue
from fedpeft.strategies.base import FedPeft


class FedSALoRA(FedPeft):
    """Average ``lora_A``, and let every client keep a ``lora_B`` of its own from round to round.

        A = sum_k p_k A_k;   client k's model: W0 + s B_k A

    A learns what clients have in common, B what is special to each. Both train; B never travels and lies with the
    client's own state. Up and down go A (rank, in) of each module, and the head if it is shared (``head=local`` keeps
    it personal, as the paper does).

    There is no global model: the server's B stays zero, so its own evaluation sees the base model with the shared head.
    What counts is the clients' accuracy on their own examples, ``evaluate.clients_every``.

    Example:
        >>> FedSALoRA(cohort_size=4).linear
        True
    """

    linear = True
    requires = frozenset({FACTORS})

    def client_tensors(self, global_tensors: Tensors, client: ClientInfo) -> Tensors:
        """Send everything but B."""
        return {key: value for key, value in global_tensors.items() if not key.endswith(B_SUFFIX)}

    def client_config(self, client: ClientInfo) -> Mapping[str, ConfigValue]:
        """Let B train and stay."""
        return Orders(keep=("lora_B",)).entries()
