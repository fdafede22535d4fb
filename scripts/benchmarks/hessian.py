"""Time the ten largest Hessian eigenvalues of a ResNet-20 on CIFAR-10, by ours and by the peers.

The network is trained a little first; loss (cross-entropy), images and evaluation mode are the same for all.

- landscape: `extreme_eigenpairs`, Lanczos until every residual `||H v - lambda v||` is below 1e-3 lambda.
- PyHessian (PyPI): `eigenvalues(maxIter=100, tol=1e-3, top_n=10)`, its defaults: power iteration, one eigenvalue
  after the other. It gets all images as one batch, so that it differentiates one graph again and again.
- curvlinops (PyPI): its `HessianLinearOperator` in SciPy's `eigsh(k=10, which="LA", tol=1e-3)`, with the batches that
  are best for a forward pass.

Errors are relative to eigenvalues computed in float64 with residuals below 1e-5 lambda. PyHessian looks for the largest
absolute values: where negative ones are among them, its list is another, and its error says so. Memory is what a
process of its own needs above code, network and data, for the largest eigenvalue. Contenders take turns in rounds, and
ratios are taken within a round.

    python scripts/benchmarks/hessian.py [--rounds 2] [--images 100] [--quick] [--out results/benchmarks]
"""

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from unittest.mock import patch

import numpy as np
import torch
from harness import (
    bars,
    in_process,
    interleaved,
    machine_facts,
    options,
    peak_memory,
    span,
    speedup,
    spread,
    table,
    write,
)
from torch import nn
from torch.nn import functional as F
from workloads import make

from landscape import extreme_eigenpairs
from landscape.data import Dataset
from landscape.objective import Objective

OWN = "landscape"
Found = tuple[np.ndarray, int]
"""Eigenvalues in descending order, and how many products with a vector they took."""


def ours(model: nn.Module, data: Dataset, k: int) -> Found:
    """By `extreme_eigenpairs`."""
    pairs = extreme_eigenpairs(Objective(model, data, metrics={}), k=k)
    if not pairs.converged.all():
        raise RuntimeError(f"residuals {pairs.residuals} of {pairs.values} after {pairs.n_products} products")
    return pairs.values, pairs.n_products


def pyhessian(model: nn.Module, data: Dataset, k: int) -> Found:
    """By PyHessian."""
    import pyhessian

    module = sys.modules["pyhessian.hessian"]  # the package gives its class the same name
    network = copy.deepcopy(model)
    with (
        patch.object(module, "hessian_vector_product", wraps=module.hessian_vector_product) as product,
        warnings.catch_warnings(action="ignore"),
    ):
        hessian = pyhessian.hessian(network, F.cross_entropy, data=(data.inputs, data.targets), cuda=False)
        values, _ = hessian.eigenvalues(top_n=k)
    network.zero_grad()  # or the graph would never be freed
    return np.sort(values)[::-1], product.call_count


def curvlinops(model: nn.Module, data: Dataset, k: int) -> Found:
    """By curvlinops and SciPy."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = Objective(model, data, metrics={}).chunk_size
    network = copy.deepcopy(model)
    batches = list(zip(data.inputs.split(size), data.targets.split(size), strict=True))
    hessian = HessianLinearOperator(
        network, nn.CrossEntropyLoss(), list(network.parameters()), batches, check_deterministic=False
    ).to_scipy()
    n_products = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal n_products
        n_products += 1
        return hessian @ vector.astype(np.float32)

    operator = LinearOperator(hessian.shape, matvec=product, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(hessian.shape[0]).astype(np.float32)
    values = eigsh(operator, k=k, which="LA", tol=1e-3, v0=start, return_eigenvectors=True)[0]
    return np.sort(values)[::-1], n_products


CONTENDERS: dict[str, Callable[[nn.Module, Dataset, int], Found]] = {
    OWN: ours,
    "PyHessian": pyhessian,
    "curvlinops": curvlinops,
}
MODULES = {"PyHessian": "pyhessian", "curvlinops": "curvlinops"}
MISSING = [name for name, module in MODULES.items() if find_spec(module) is None]
PRESENT = [name for name in CONTENDERS if name not in MISSING]


def measure(n_images: int, k: int, rounds: int, quick: bool) -> dict:
    """Let all contenders take turns."""
    model, data = make("D", quick=quick, n_samples=n_images)
    found: dict[str, Found] = {}

    def timed(name: str) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            found[name] = CONTENDERS[name](model, data, k)
            return time.perf_counter() - begin

        return run

    seconds = interleaved({name: timed(name) for name in PRESENT}, rounds, warm=False)
    objective = Objective(model, data, metrics={}, dtype=torch.float64)
    truth = extreme_eigenpairs(objective, k=k, rtol=1e-2 if quick else 1e-5, max_products=1000)
    size = ["--quick"] if quick else ["--images", str(n_images)]
    return {
        "images": n_images,
        "loss": objective.evaluate(objective.origin)["loss"],
        "eigenvalues": truth.values.tolist(),
        "relative residuals": (truth.residuals / np.abs(truth.values)).tolist(),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times as fast": {name: speedup(seconds, OWN, [name]) for name in PRESENT if name != OWN},
        "products": {name: n for name, (_, n) in found.items()},
        "largest relative error": {
            name: float(np.abs(values / truth.values - 1).max()) for name, (values, _) in found.items()
        },
        "memory": {name: in_process("--memory", name, *size) for name in PRESENT},
    }


def memory_of(name: str, n_images: int, quick: bool) -> float | None:
    """Return the bytes that a contender needs in this process for the largest eigenvalue, above network and data."""
    model, data = make("D", quick=quick, n_samples=n_images, trained=False)
    few = replace(data, inputs=data.inputs[:2], targets=data.targets[:2])
    CONTENDERS[name](model, few, 1)  # loads code, which does not count
    return peak_memory(lambda: CONTENDERS[name](model, data, 1))


def tables(results: dict) -> str:
    """Return the results as a Markdown table."""
    rows = []
    for name in PRESENT:
        memory = results["memory"][name]
        rows.append(
            [name, span(results["seconds"][name]), "" if name == OWN else span(results["times as fast"][name]),
             str(results["products"][name]), f"{results['largest relative error'][name]:.0e}",
             "" if memory is None else f"{memory / 2**20:.0f}"]
        )  # fmt: skip
    k = len(results["eigenvalues"])
    head = ["", "seconds", "landscape is so many times as fast", "products", "largest error", "memory, MB"]
    parts = [f"{k} largest eigenvalues of ResNet-20, {results['images']} images; median (minimum to maximum).",
             table(head, rows)]  # fmt: skip
    parts.append("Eigenvalues: " + ", ".join(f"{value:.4g}" for value in results["eigenvalues"]) + ".")
    if MISSING:
        parts.append(f"Not installed here, and so left out: {', '.join(MISSING)}.")
    return "\n\n".join(parts)


def main() -> None:
    """Measure and write `hessian.json`, `.md`, `.html` and pictures."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--images", type=int, default=100, help="how many")
    parser.add_argument("--memory", choices=list(CONTENDERS), help="print the memory of one, in bytes")
    chosen = parser.parse_args()
    n_images, k, rounds = (20, 2, 1) if chosen.quick else (chosen.images, 10, chosen.rounds)
    if chosen.memory:
        print(json.dumps(memory_of(chosen.memory, n_images, chosen.quick)))
        return
    results = measure(n_images, k, rounds, chosen.quick)
    figure = bars(
        f"{k} largest Hessian eigenvalues of ResNet-20", "seconds",
        [f"{name}<br>{results['products'][name]} products" for name in PRESENT],
        {"seconds": [results["seconds"][name] for name in PRESENT]},
        log=False, notes=[f"{n_images} images; median over rounds, with minimum and maximum."],
    )  # fmt: skip
    write(chosen.out, "hessian", __doc__, machine_facts(rounds=rounds), results, tables(results), figure)


if __name__ == "__main__":
    main()
