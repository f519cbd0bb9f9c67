"""What a client measures of its model for FedPepTAO (arXiv:2310.15080): scores of layers, and the Hessian.

The arithmetic that follows is in ``fedpeft.core.spectrum``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.client.trainer import autocast
from fedpeft.core.errors import ConfigError
from fedpeft.core.spectrum import Product, similarity_score
from fedpeft.tasks.placement import beside, device_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedpeft.tasks.base import Batch


def layer_scores(model: nn.Module, batch: Batch, *, dtype: str = "float32") -> np.ndarray:
    """Return FedPepTAO's score of each layer, from one forward pass.

    The features of an example at layer l are all hidden states that layer l puts out, (tokens, hidden_size), as one
    row; padding is zero. Score: ``core.spectrum.similarity_score``. Padding changes no score, and a batch of one
    example says nothing: all its layers score 1.

    Virtual tokens that a prompt puts before the text count like tokens; prefixes only lengthen keys and values. Layers
    are told apart only by what the adapter leaves of the base model, so score before training, or without prompts, to
    score the base model itself.

    Differs: all L layers are scored, the last one too. A layer's output is taken at the layer: what Hugging Face calls
    the last hidden state has gone through a final norm in GPT-2 and Llama.

    Args:
        model: a Hugging Face model, wrapped by peft or not; its mode is restored.
        batch: ``input_ids``, ``attention_mask`` and whatever else the model takes; labels are left out.
        dtype: dtype of the products, ``float32`` or ``bfloat16``; scores are float64 in any case.

    Returns:
        (L,) float64, in the order of the layers.

    Raises:
        ConfigError: the model has no list of ``num_hidden_layers`` layers (weights shared between layers).
        DataError: a text is empty, or hidden states are not finite.
    """
    import torch

    outputs: list[torch.Tensor] = []
    inputs = {name: value for name, value in beside(model, batch).items() if name != "labels"}
    was_training = model.training
    model.eval()
    try:
        with _recording(_layers(model), outputs), torch.inference_mode(), autocast(dtype, device_of(model)):
            model(**inputs)
    finally:
        model.train(was_training)
    return np.array([similarity_score(_rows(one, inputs.get("attention_mask"))) for one in outputs])


def hessian_product(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], *, dtype: str = "float32"
) -> Product:
    """Return ``v -> H v`` for the Hessian of a scalar loss at the parameters as they stand.

    ``H v = d (g . v) / dw`` with g = d loss / dw (Pearlmutter 1994): the loss and g are computed once, here, and their
    graph is kept for as long as the product lives, so that each product costs about two backward passes. Where dropout
    is on, H is the Hessian under the one mask that was drawn; ``model.eval()`` turns it off.

    Leave the parameters as they are while the product is in use: the graph refers to them.

    The Hessian of a mean over batches is the mean of their Hessians; so are the products.

    Args:
        loss: computes the loss, e.g. ``lambda: task.per_example_loss(model, batch).mean()``. Fused attention kernels
            have no second derivative, so it runs with those of ``scaled_dot_product_attention`` off.
        parameters: what the Hessian is with respect to, e.g. ``tunable.trainable``; leaf tensors that need gradients.
        dtype: dtype of the loss's products, ``float32`` or ``bfloat16`` (autocast). With bfloat16, H is right to
            about two digits and not quite symmetric.

    Returns:
        A function from (dim,) float64 to (dim,) float64, dim the total size of the parameters, flattened one after the
        other in the given order.

    Raises:
        ConfigError: the model's attention cannot be differentiated twice.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), autocast(dtype, parameters[0].device), torch.enable_grad():
        value = loss()
    slopes = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([slope.reshape(-1) for slope in slopes])

    def product(vector: np.ndarray) -> np.ndarray:
        if not flat.requires_grad:
            # The loss is linear in every parameter: nothing is left to differentiate.
            return np.zeros(flat.numel())
        direction = torch.from_numpy(np.array(vector)).to(flat)
        try:
            curved = torch.autograd.grad(
                flat, parameters, grad_outputs=direction, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise ConfigError(
                f"the Hessian needs attention that can be differentiated twice, got: {str(error).splitlines()[0]} "
                "(load the model with attn_implementation eager or sdpa)"
            ) from error
        return torch.cat([one.reshape(-1) for one in curved]).double().cpu().numpy()

    return product


@contextmanager
def _recording(layers: Sequence[nn.Module], outputs: list[torch.Tensor]) -> Iterator[None]:
    def record(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Any) -> Sequence[nn.Module]:
    """The stack is the outermost list of as many modules as the config has layers: BERT's, GPT-2's and Llama's are."""
    from torch import nn

    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(
        f"layers cannot be scored: {type(model).__name__} has no list of its {count} layers (choose a model whose "
        "layers have weights of their own)"
    )


def _rows(hidden: torch.Tensor, mask: torch.Tensor | None) -> np.ndarray:
    """Return (n, tokens * hidden_size) with padding zero; the mask is the text's, virtual tokens come before it."""
    rows = hidden.double()
    if mask is not None:
        rows[:, hidden.shape[1] - mask.shape[1] :].mul_(mask[:, :, None])
    return rows.flatten(1).cpu().numpy()
