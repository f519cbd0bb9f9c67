"""Spectra: how alike examples look to a layer, and how the eigenvalues of a large symmetric matrix are spread.

What FedPepTAO (Che et al. 2023, arXiv:2310.15080) ranks and counts layers by. Only products with the large matrix are
needed, so that it may be the Hessian of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.core.tensors import weighted_mean

Product = Callable[[np.ndarray], np.ndarray]
"""From a vector (dim,) float64 to a symmetric matrix times it, (dim,)."""

RIDGE = 1e-5


def similarity_score(features: np.ndarray) -> float:
    """Return ``sum_i (log l_i + 1 / l_i)`` over the eigenvalues of the cosine similarities between examples.

    G_ij is the cosine between rows i and j, l = eigvalsh(G) + 1e-5. G is positive semi-definite with trace n; the sum
    is smallest, n, where all rows are orthogonal, and a pair of equal rows alone adds about 1e5: it says how many
    examples the layer cannot tell apart.

    Differs: eigenvalues of G as a symmetric matrix, so that rounding never makes them complex.

    Args:
        features: (n, size), one row for each example, any float dtype; computed in float64.

    Raises:
        DataError: a row is zero or not finite, so that it has no direction.

    Example:
        >>> round(similarity_score(np.eye(3)), 4)
        3.0
    """
    rows = np.asarray(features, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        bad = int(np.flatnonzero(~((lengths > 0) & np.isfinite(lengths)))[0])
        raise DataError(
            f"a layer's score needs finite features that are not all zero, example {bad} of the batch has norm "
            f"{lengths[bad, 0]} (leave out empty texts; check the model's dtype)"
        )
    rows = rows / lengths
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T) + RIDGE
    return float(np.sum(np.log(eigenvalues) + 1 / eigenvalues))


def rank_layers(scores: Sequence[np.ndarray], weights: Sequence[float]) -> list[int]:
    """Return all layer numbers by weighted mean score, highest first; equal means by layer number.

    Args:
        scores: (num_layers,) of each client, in canonical order of clients.
        weights: one positive number for each client, e.g. its examples.

    Raises:
        DataError: clients scored different numbers of layers, or a score is not finite.

    Example:
        >>> rank_layers([np.array([1.0, 5.0, 2.0]), np.array([7.0, 1.0, 2.0])], [1, 1])
        [0, 1, 2]
    """
    shapes = sorted({np.shape(one) for one in scores})
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise DataError(f"clients must score the same layers, got shapes {shapes} (do they hold the same base model?)")
    if not all(np.isfinite(one).all() for one in scores):
        raise DataError("layer scores must be finite (drop the clients whose scores are not)")
    mean = weighted_mean([{"scores": np.asarray(one, dtype=np.float64)} for one in scores], weights)["scores"]
    return [int(i) for i in np.argsort(-mean, kind="stable")]


def num_selected(share: float, num_layers: int) -> int:
    """Return ``ceil(share * num_layers)``, at least 1.

    Raises:
        DataError: the share is outside [0, 1].

    Example:
        >>> num_selected(0.5, 24), num_selected(0.51, 24), num_selected(0.0, 24), num_selected(0.14, 50)
        (12, 13, 1, 7)
    """
    if not 0 <= share <= 1:
        raise DataError(f"the share of layers must be in [0, 1], got {share}")
    # 0.14 * 50 is 7.000000000000001 in floating point.
    return max(1, math.ceil(share * num_layers - 1e-9))


def lanczos(product: Product, start: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tridiagonal matrix ``T = Q' A Q`` of the Krylov space of ``start``.

    Every new basis vector is made orthogonal to all before it, twice, in float64: without that, converged eigenvalues
    come back as ghosts. It costs num_steps * dim * 8 bytes.

    Args:
        product: v -> A v for a symmetric A.
        start: (dim,) first vector, any length but zero.
        num_steps: most steps, at least 1; more than dim is dim.

    Returns:
        Diagonal ``alphas`` (m,) and off-diagonal ``betas`` (m - 1,), m <= num_steps: fewer where the space is closed
        under A, as then T is exact for this start.

    Raises:
        ConfigError: no steps.
        DataError: the start is zero, or a product is not finite.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps of Lanczos must be >= 1, got {num_steps}")
    vector = np.asarray(start, dtype=np.float64)
    if not (length := float(np.linalg.norm(vector))) > 0:
        raise DataError(f"Lanczos needs a start of positive length, got {length}")
    dim = vector.size
    basis = np.zeros((min(num_steps, dim), dim))
    basis[0] = vector / length
    alphas: list[float] = []
    betas: list[float] = []
    for step in range(len(basis)):
        image = np.asarray(product(basis[step]), dtype=np.float64)
        if not np.isfinite(image).all():
            raise DataError(f"product {step + 1} of Lanczos is not finite (is the loss, at these weights?)")
        alphas.append(float(basis[step] @ image))
        known = basis[: step + 1]
        size = float(np.linalg.norm(image))
        for _ in range(2):
            image = image - (image @ known.T) @ known
        rest = float(np.linalg.norm(image))
        if step + 1 == len(basis) or rest <= dim * np.finfo(np.float64).eps * max(size, *map(abs, alphas)):
            break
        betas.append(rest)
        basis[step + 1] = image / rest
    return np.array(alphas), np.array(betas)


def quadrature(alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights such that ``sum_i w_i f(node_i)`` stands for ``u' f(A) u``, u the unit start vector.

    Nodes are the eigenvalues of T (Ritz values), weights the squared first components of its eigenvectors. Exact for
    polynomials up to degree 2 m - 1 (Golub and Meurant's Gauss quadrature).

    Args:
        alphas: (m,) diagonal of T.
        betas: (m - 1,) off-diagonal of T.

    Returns:
        Ascending nodes (m,) and weights (m,) that sum to 1, float64.
    """
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    return nodes, np.square(vectors[0])


def density(
    product: Product, dim: int, *, num_steps: int = 50, num_vectors: int = 1, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalue density of a symmetric matrix by stochastic Lanczos quadrature.

    The mean of the quadratures of ``num_vectors`` random start vectors: its expectation is ``tr f(A) / dim`` for
    polynomials f up to degree 2 * num_steps - 1. Entries of a start are +1 or -1, with which a diagonal matrix is
    matched by every single vector. FedPepTAO takes 50 steps and one vector.

    Args:
        product: v -> A v for a symmetric A.
        dim: its size.
        num_steps: Lanczos steps, that is products, for each start vector.
        num_vectors: start vectors, at least 1.
        rng: source of the start vectors.

    Returns:
        Ascending nodes (k,) and their weights (k,), which sum to 1; k <= num_steps * num_vectors.

    Raises:
        ConfigError: num_steps, num_vectors or dim is below 1.
    """
    wrong = {"num_steps": num_steps, "num_vectors": num_vectors, "dim": dim}
    if problems := [f"{name} of a density must be >= 1, got {value}" for name, value in wrong.items() if value < 1]:
        raise ConfigError(problems)
    parts = []
    for _ in range(num_vectors):
        start = rng.integers(0, 2, size=dim) * 2.0 - 1.0
        parts.append(quadrature(*lanczos(product, start, num_steps)))
    nodes = np.concatenate([one for one, _ in parts])
    weights = np.concatenate([one for _, one in parts]) / num_vectors
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[order]


def share_above(threshold: float, nodes: np.ndarray, weights: np.ndarray, variance: float) -> float:
    """Return ``1 - CDF(threshold)`` of the density with every node blurred by a Gaussian.

    Args:
        threshold: where to cut.
        nodes: (k,) places.
        weights: (k,) masses that sum to 1.
        variance: of the Gaussian, >= 0; 0 leaves steps, and a node at the threshold is not above it.

    Example:
        >>> share_above(1.0, np.array([0.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.25]), variance=1e-6)
        0.5
    """
    if variance == 0:
        above = (nodes > threshold).astype(np.float64)
    else:
        above = np.array([math.erfc((threshold - node) / math.sqrt(2 * variance)) / 2 for node in nodes])
    return float(above @ weights)


def selected_share(
    nodes: np.ndarray,
    weights: np.ndarray,
    *,
    first: float = 0.0,
    step: float = 0.1,
    tolerance: float = 0.005,
    patience: int = 4,
    blur: float = 1e-5,
) -> float:
    """Return rho, the share of the Hessian's eigenvalues above the place from which the share settles.

        variance = blur * (max node - min node);  rho(t) = 1 - CDF(t)
        t = first; repeat t += step, and step /= 2 where rho(t) <= half of the rho before,
        until rho has changed by less than ``tolerance`` ``patience`` times in a row; that last rho

    It ends: rho only falls, from at most 1, so that at most 1 / tolerance changes are large.

    Differs: the CDF of the blurred nodes is exact (a sum of error functions) instead of a sum over a grid, and a
    halved step counts from the next move on. Nothing is random. t is in units of the nodes: where nearly all of them
    are far below ``step``, rho is nearly 0 and one layer is kept (``num_selected``). In FedPepTAO's units, those of the
    loss, small encoders turn out so: six-layer MiniLM with 20 prefix tokens, before, in and after training, has its
    largest eigenvalue below 0.01 and rho = 0 (rho(0) is 0.5: blurred null directions lie half on either side). Clients
    therefore divide the nodes by the largest first (``client.measure``).

    Args:
        nodes: (k,) places of the density.
        weights: (k,) masses that sum to 1.
        first: where the scan starts.
        step: first increment, positive.
        tolerance: smaller changes of rho are calm, positive.
        patience: calm changes in a row that end the scan, at least 1.
        blur: variance of the Gaussian by range of the nodes, >= 0.

    Raises:
        ConfigError: a setting is out of range; all problems together.
    """
    checks = {
        f"step must be positive, got {step}": step > 0,
        f"tolerance must be positive, got {tolerance}": tolerance > 0,
        f"patience must be >= 1, got {patience}": patience >= 1,
        f"blur must be >= 0, got {blur}": blur >= 0,
    }
    if problems := [message for message, fine in checks.items() if not fine]:
        raise ConfigError(problems)
    variance = blur * float(np.max(nodes) - np.min(nodes))
    threshold, calm = first, 0
    share = share_above(threshold, nodes, weights, variance)
    while calm < patience:
        threshold += step
        new = share_above(threshold, nodes, weights, variance)
        calm = calm + 1 if share - new < tolerance else 0
        if new <= share / 2:
            step /= 2
        share = new
    return min(max(share, 0.0), 1.0)
