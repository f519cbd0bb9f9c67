"""Hessian products are those of the loss, as computed by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import toy as maker
from small_models import LAYERS, batch_of, wrapped
from torch import nn

from fedpeft.client.probes import hessian_product
from fedpeft.core.errors import ConfigError
from fedpeft.core.spectrum import density
from fedpeft.methods.lora import LoRA
from fedpeft.tasks.models import load_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(maker.write_model(tmp_path_factory.mktemp("probes") / "model", layers=LAYERS))


def columns(product: object, dim: int) -> np.ndarray:
    assert callable(product)
    return np.stack([product(one) for one in np.eye(dim)], axis=1)


def test_hessian_of_a_quadratic_is_its_matrix() -> None:
    """x' A x / 2 + b' y has Hessian A over x and zeros over y, in the order of the parameters."""
    matrix = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.0], [0.5, 0.0, -4.0]])
    x, y = nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), nn.Parameter(torch.tensor([[5.0, 6.0]]))
    product = hessian_product(lambda: x @ matrix @ x / 2 + (y * 7).sum(), [y, x])
    expected = np.zeros((5, 5))
    expected[2:, 2:] = matrix.numpy()
    got = columns(product, 5)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.dtype == np.float64
    assert x.grad is None and y.grad is None


def test_hessian_of_logistic_regression_by_hand() -> None:
    """Loss mean log(1 + exp(-w.x)), Hessian mean p (1 - p) x x' with p = 1 / (1 + exp(-w.x)).

    w = (log 3, 0). x = (1, 2): p = 3/4, p (1 - p) = 3/16. x = (0, 1): p = 1/2, 1/4.
    H = 1/2 (3/16 [[1, 2], [2, 4]] + 1/4 [[0, 0], [0, 1]]) = [[3/32, 6/32], [6/32, 16/32]].
    """
    w = nn.Parameter(torch.tensor([math.log(3), 0.0]))
    x = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    product = hessian_product(lambda: nn.functional.softplus(-(x @ w)).mean(), [w])
    np.testing.assert_allclose(columns(product, 2), np.array([[3, 6], [6, 16]]) / 32, atol=1e-7)


def test_a_loss_without_curvature_has_a_zero_hessian() -> None:
    x, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    assert not hessian_product(lambda: 2 * x.sum(), [x])(np.ones(3)).any()
    assert not hessian_product(lambda: 2 * x.sum(), [x, unused])(np.ones(5)).any()
    assert not hessian_product(lambda: (x**2).sum(), [unused])(np.ones(2)).any()


def adapted(kind: str, name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    """A wrapped model in float64 with weights that are not at their start, and what of it trains."""
    model = wrapped(kind, name).double().eval()
    parameters = [value for value in model.parameters() if value.requires_grad]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in parameters:
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model, parameters


@pytest.mark.parametrize(
    ("kind", "name", "e", "tolerance"),
    [
        ("bert", "lora", 1e-5, 1e-7),
        ("bert", "prefix", 1e-5, 1e-7),
        ("gpt2", "prefix", 1e-5, 1e-7),
        ("llama", "prompt", 3e-4, 1e-3),
    ],
)
def test_hessian_is_the_slope_of_the_gradient(kind: str, name: str, e: float, tolerance: float) -> None:
    """(g(w + e v) - g(w - e v)) / 2 e in float64; symmetric too: u.Hv = v.Hu. The model's attention is the fused one.

    Llama normalises in float32 whatever its dtype, so that its differences need a longer step and are rougher.
    """
    model, parameters = adapted(kind, name)
    assert model.config._attn_implementation == "sdpa"
    batch = batch_of(5, 3, 6)
    loss = lambda: model(**batch).loss
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, sum(value.numel() for value in parameters)))
    product = hessian_product(loss, parameters)
    start = nn.utils.parameters_to_vector(parameters).detach().clone()

    def gradient(step: float) -> np.ndarray:
        nn.utils.vector_to_parameters(start + step * torch.from_numpy(v), parameters)
        slopes = torch.autograd.grad(loss(), parameters)
        nn.utils.vector_to_parameters(start, parameters)
        return np.concatenate([one.numpy().ravel() for one in slopes])

    curved = product(v)
    error = np.linalg.norm(curved - (gradient(e) - gradient(-e)) / (2 * e))
    assert error < tolerance * np.linalg.norm(curved)
    assert np.linalg.norm(curved) > 1e-3
    assert u @ curved == pytest.approx(v @ product(u), rel=tolerance, abs=tolerance)


def test_float32_and_bfloat16_agree_with_float64(folder: str) -> None:
    """A bfloat16 base under autocast, as in training: two digits, and not NaN."""
    batch = batch_of(5, 3, 6, 7)
    curved = {}
    for dtype in ("float64", "float32", "bfloat16"):
        model = load_classifier(folder, num_labels=2, dtype=dtype, dropout=0.0, seed=0).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            tunable = LoRA(rank=2).attach(model, "share")
            for value in tunable.trainable:
                value.data = torch.randn(value.shape) * 0.2
        if dtype == "float64":
            model.double()
        # The tunable's tensors are the model's own, whatever their dtype became.
        v = np.random.default_rng(0).normal(size=sum(value.numel() for value in tunable.trainable))
        product = hessian_product(
            lambda model=model: model(**batch).loss,
            tunable.trainable,
            dtype="bfloat16" if dtype == "bfloat16" else "float32",
        )
        curved[dtype] = product(v)
    size = np.linalg.norm(curved["float64"])
    assert size > 1e-2
    assert np.linalg.norm(curved["float32"] - curved["float64"]) < 1e-4 * size
    assert np.linalg.norm(curved["bfloat16"] - curved["float64"]) < 0.05 * size


def test_attention_without_second_derivative_is_refused() -> None:
    q = nn.Parameter(torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(0)))
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    product = hessian_product(lambda: fused(q, q, q)[0].square().sum(), [q])
    with pytest.raises(ConfigError, match=r"differentiated twice.*eager or sdpa"):
        product(np.ones(8))


def test_density_of_a_models_hessian_is_seeded_and_integrates_to_its_trace(folder: str) -> None:
    """The head alone: 2 x 32 weights and 2 biases; the trace by its 66 products."""
    model = load_classifier(folder, num_labels=2, dtype="float32", dropout=0.0, seed=0).eval()
    model.requires_grad_(False)
    head = [value.requires_grad_() for value in model.classifier.parameters()]
    batch = batch_of(5, 3, 6, 7)
    products = [hessian_product(lambda: model(**batch).loss, head) for _ in range(2)]
    first, again = (density(one, 66, num_steps=8, rng=np.random.default_rng(0)) for one in products)
    assert first[0].tobytes() == again[0].tobytes() and first[1].tobytes() == again[1].tobytes()
    nodes, weights = density(products[0], 66, num_steps=8, num_vectors=40, rng=np.random.default_rng(1))
    trace = float(np.trace(columns(products[0], 66)))
    assert nodes @ weights == pytest.approx(trace / 66, rel=0.3)
    # Cross-entropy is convex in the head.
    assert nodes.min() > -1e-6 and trace > 0.1
