"""CPU seconds to turn many clients' LoRA factors into one client's: through the dense product, and without forming it.

Each of K clients has B (m, r), A (r, m) in float32, a weight p_k and a scaling s_k. Both ways give factors of rank r
whose product is the nearest to ``sum_k p_k s_k B_k A_k``: the dense way forms the sum and takes its singular value
decomposition, ours stacks the factors and decomposes a core of K r x K r. One thread for both, set before numpy loads.

    python benchmarks/redistribution.py --size 4096 --clients 16 --rank 16 --repeats 3
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))

import numpy as np  # noqa: E402

from fedpeft.core.factors import Factors, Pair, distance, factors_of, norm, split, stack, svd  # noqa: E402

PAIR = Pair(module="x", a="x.lora_A.weight", b="x.lora_B.weight")
Result = tuple[np.ndarray, np.ndarray]


def main() -> None:
    options = arguments()
    clients, weights, scalings = federation(options.size, options.clients, options.rank)
    ours_s, ours = best(lambda: through_the_factors(clients, weights, scalings, options.rank), options.repeats)
    dense_s, dense = best(
        lambda: through_the_product(clients, weights, scalings, options.rank, options.dense_dtype),
        options.dense_repeats,
    )
    expected, got = (Factors(b=b, a=a) for a, b in (dense, ours))
    print("| size | clients | rank | dense SVD, CPU s | stacked factors, CPU s | times faster | relative difference |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {options.size} x {options.size} | {options.clients} | {options.rank} | {dense_s:.2f} | {ours_s:.3f} "
        f"| {dense_s / ours_s:.0f} | {distance(expected, got) / norm(expected):.1e} |"
    )
    print(
        f"numpy {np.__version__}, one thread; dense: {options.dense_dtype}, best of {options.dense_repeats}; "
        f"stacked: float64, best of {options.repeats}",
        file=sys.stderr,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16, help="of each client and of the result")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the stacked way")
    parser.add_argument("--dense-repeats", type=int, default=1, help="runs of the dense way: a minute or more each")
    parser.add_argument("--dense-dtype", choices=("float64", "float32"), default="float64", help="of the dense way")
    return parser.parse_args()


def federation(size: int, clients: int, rank: int) -> tuple[list[dict[str, np.ndarray]], list[float], list[float]]:
    """Return every client's tensors, weights that sum to one, and scalings that differ.

    Clients share most of their change, as trained ones do: the rank that is kept then stands out from the rest.
    """
    rng = np.random.default_rng(0)
    shared_a, shared_b = rng.normal(size=(rank, size)), rng.normal(size=(size, rank))
    drift = 0.3
    tensors = [
        {
            PAIR.a: (shared_a + drift * rng.normal(size=shared_a.shape)).astype(np.float32),
            PAIR.b: (shared_b + drift * rng.normal(size=shared_b.shape)).astype(np.float32),
        }
        for _ in range(clients)
    ]
    return tensors, rng.dirichlet(np.ones(clients)).tolist(), rng.choice([0.5, 1.0, 2.0], size=clients).tolist()


def through_the_product(
    clients: list[dict[str, np.ndarray]], weights: list[float], scalings: list[float], rank: int, dtype: str
) -> Result:
    """Return A, B of scaling one from the dense sum's singular value decomposition."""
    total = np.zeros((len(clients[0][PAIR.b]), clients[0][PAIR.a].shape[1]), dtype)
    for tensors, weight, scaling in zip(clients, weights, scalings, strict=True):
        total += weight * scaling * (tensors[PAIR.b].astype(dtype) @ tensors[PAIR.a].astype(dtype))
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    return vt[:rank], u[:, :rank] * s[:rank]


def through_the_factors(
    clients: list[dict[str, np.ndarray]], weights: list[float], scalings: list[float], rank: int
) -> Result:
    """Return the same A, B as the package's rules make them."""
    parts = [factors_of(tensors, PAIR, scaling) for tensors, scaling in zip(clients, scalings, strict=True)]
    return split(*svd(stack(parts, weights)), rank=rank, scaling=1.0)


def best(run: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Return the least CPU seconds of several runs, and what the last one gave."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = run()
        seconds.append(time.process_time() - started)
    return min(seconds), result


if __name__ == "__main__":
    main()
