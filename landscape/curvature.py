"""Curvature of the training loss: what its Hessian `H = d^2 L / d theta^2` says, from products `H v` alone.

The loss is the objective's, whatever it is, averaged over all of its data, with its batch-norm policy as for the
gradient. What is found is always accompanied by how well: residuals, standard errors.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from landscape.arguments import LARGEST_SEED, expect, real_number, whole_number
from landscape.evaluation.grid import coarse_to_fine
from landscape.evaluation.question import axes_of, check_same_values, fingerprint_of, provenance_of
from landscape.hessian import Hessian
from landscape.lanczos import Eigenpairs, extreme_pairs, quadrature, rademacher
from landscape.objective import Objective
from landscape.slice import Slice
from landscape.surface import Surface, SurfaceStore, empty_surface

log = logging.getLogger(__name__)

_SAMPLE_BYTES = 256 << 20  # random vectors that are multiplied together


def extreme_eigenpairs(
    objective: Objective,
    theta: Tensor | None = None,
    k: int = 1,
    *,
    which: str = "largest",
    rtol: float = 1e-3,
    max_products: int = 500,
    seed: int = 0,
) -> Eigenpairs:
    """Compute the largest or smallest eigenvalues of the Hessian, with their eigenvectors and residuals.

    Lanczos with full reorthogonalization, see `lanczos.extreme_pairs`. Largest and smallest are meant with sign: the
    largest is the sharpness, a negative smallest one shows a direction of descent. A pair has converged when
    `||H v - lambda v|| <= rtol |lambda|`, or when that is below the rounding of a product, 32 units in the last place
    of the largest |eigenvalue|.

    Args:
        objective: Loss and data.
        theta: `[p]`. Default: the objective's network.
        k: How many pairs, of each end with `"both"`.
        which: `"largest"` (descending), `"smallest"` (ascending), or `"both"`, the largest first.
        rtol: Relative residual to reach.
        max_products: When to give up; what has not converged then is marked and logged. One product costs a few
            gradients.
        seed: Seed of the random start.

    Raises:
        ValueError: An option is out of range.

    Example:
        >>> pairs = extreme_eigenpairs(objective, k=3)  # doctest: +SKIP
        >>> pairs.values, pairs.residuals  # doctest: +SKIP
    """
    p = _size(objective)
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"which must be 'largest', 'smallest' or 'both', got {which!r}")
    k = whole_number("k", k, 1)
    n_wanted = 2 * k if which == "both" else k
    if n_wanted > p:
        raise ValueError(f"k must be at least 1 and ask for at most {p} pairs, as there are parameters; got {n_wanted}")
    rtol = real_number("rtol", rtol, above=0)
    max_products, seed = whole_number("max_products", max_products, 1), whole_number("seed", seed, 0, LARGEST_SEED)
    if max_products < n_wanted:
        raise ValueError(f"{n_wanted} pairs need at least as many products, got max_products={max_products}")
    pairs = extreme_pairs(
        Hessian(objective, theta).products,
        p,
        0 if which == "smallest" else k,
        0 if which == "largest" else k,
        rtol=rtol,
        noise=_noise(objective),
        max_products=max_products,
        seed=seed,
        device=objective.device,
    )
    if not pairs.converged.all():
        log.warning(
            "%d of %d Hessian eigenpairs have not converged to rtol=%g after %d products (largest relative residual "
            "%.2g): raise max_products or rtol",
            (~pairs.converged).sum(),
            n_wanted,
            rtol,
            pairs.n_products,
            np.max(relative_residuals(pairs)),
        )
    return pairs


def relative_residuals(pairs: Eigenpairs) -> np.ndarray:
    """Return `||H v - lambda v|| / |lambda|`, `[k]`; 0 where the residual is."""
    with np.errstate(divide="ignore"):
        return np.where(pairs.residuals == 0, 0.0, pairs.residuals / np.abs(pairs.values))


@dataclass(frozen=True)
class Estimate:
    """A number estimated from random samples.

    Attributes:
        value: The estimate.
        standard_error: Its estimated standard deviation.
        n_products: How many Hessian-vector products it took.
    """

    value: float
    standard_error: float
    n_products: int


def trace(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    n_samples: int = 30,
    deflate: Eigenpairs | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate the trace of the Hessian without bias.

    With `Q` an orthonormal basis of a subspace and `P = I - Q^T Q`,

        tr H = tr(Q H Q^T) + E[(P z)^T H (P z)],    z with entries +1 and -1.

    The first part is exact, the second a mean over random `z`, which scatters less the more of the spectrum `Q` holds.
    By default (Hutch++, arXiv:2010.09649) a third of the products finds `Q`, as the range of `H S` for a random `S`, a
    third goes into the first part, a third into the mean. Eigenpairs that are known already can take the place of `Q`;
    then all products go into the mean. For a Hessian of a few large eigenvalues and a long tail, plain sampling is
    heavy-tailed: look at the standard error.

    Args:
        objective: Loss and data.
        theta: `[p]`. Default: the objective's network.
        n_samples: How many products to use, at least 6, or 2 with `deflate`.
        deflate: Eigenpairs at the same point. They need not be accurate, but the values must be `v^T H v`, as those of
            `extreme_eigenpairs` are.
        seed: Seed of the random vectors.

    Returns:
        The trace, with its standard error from the scatter of the samples. NaN if a product is not finite.
    """
    least = 6 if deflate is None else 2
    n_samples, seed = whole_number("n_samples", n_samples, least), whole_number("seed", seed, 0, LARGEST_SEED)
    if deflate is not None:
        expect("deflate", deflate, Eigenpairs, "what extreme_eigenpairs returns")
    p, products = _size(objective), Hessian(objective, theta).products
    generator = torch.Generator().manual_seed(seed)
    if deflate is None:
        n_sketch = n_samples // 3
        sketch = products(rademacher(n_sketch, p, generator, objective.device))
        q = torch.linalg.qr(sketch.T)[0].T  # [n_sketch, p]
        inside = float((q * products(q)).sum())
        n_inside = n_sketch + len(q)
    else:
        q, inside, n_inside = deflate.vectors, float(deflate.values.sum()), 0
    n_outside = n_samples - n_inside
    samples = []
    together = max(1, _SAMPLE_BYTES // (8 * p))
    for first in range(0, n_outside, together):
        z = rademacher(min(together, n_outside - first), p, generator, objective.device)
        z -= (z @ q.T) @ q
        samples.append((z * products(z)).sum(dim=1).cpu().numpy())
    outside = np.concatenate(samples)
    error = float(outside.std(ddof=1) / math.sqrt(n_outside))
    return Estimate(inside + float(outside.mean()), error, n_samples)


@dataclass(frozen=True)
class Density:
    """How the eigenvalues of a Hessian are distributed; the integral over all of them is 1.

    Attributes:
        grid: `[g]` eigenvalues.
        density: `[g]` the density there, smoothed with a Gaussian.
        sigma: Standard deviation of that Gaussian.
        nodes: `[n_probes, n_steps]` quadrature nodes of each random probe.
        weights: `[n_probes, n_steps]` their weights, which add up to 1 for each probe: the mean over probes of
            `sum_i w_i f(node_i)` estimates the mean of `f` over the eigenvalues.
        n_products: How many Hessian-vector products it took.
    """

    grid: np.ndarray
    density: np.ndarray
    sigma: float
    nodes: np.ndarray
    weights: np.ndarray
    n_products: int


def spectral_density(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    n_probes: int = 8,
    n_steps: int = 40,
    grid: np.ndarray | None = None,
    sigma: float | None = None,
    seed: int = 0,
) -> Density:
    """Estimate the density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

        density(t) = 1/n_probes sum_probes sum_i w_i N(t; node_i, sigma^2)

    Nodes and weights are those of `lanczos.quadrature`. Sharp features are widened to `sigma`; an eigenvalue that is
    one of `p` has the weight `1/p` on average (Ghorbani et al. 2019, arXiv:1901.10159).

    Args:
        objective: Loss and data.
        theta: `[p]`. Default: the objective's network.
        n_probes: Random vectors; the scatter falls with their square root.
        n_steps: Lanczos steps of each, at most `p` being used: they resolve the spectrum.
        grid: `[g]` where to evaluate the density. Default: 1001 points, over the range of the nodes and `5 sigma`
            beyond.
        sigma: Width of the smoothing. Default: a hundredth of the range of the nodes.
        seed: Seed of the probes.

    Raises:
        ValueError: An option is out of range, or the Hessian is not finite.
    """
    n_probes, n_steps = whole_number("n_probes", n_probes, 1), whole_number("n_steps", n_steps, 1)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    if sigma is not None:
        sigma = real_number("sigma", sigma, above=0)
    if grid is not None:
        grid = _grid(grid)
    p = _size(objective)
    nodes, weights, n_products = quadrature(
        Hessian(objective, theta).products,
        p,
        n_probes,
        min(n_steps, p),
        noise=_noise(objective),
        seed=seed,
        device=objective.device,
    )
    if not np.isfinite(nodes).all():
        raise ValueError("the Hessian is not finite at this point")
    used = nodes[weights > 0]
    low, high = used.min(), used.max()
    if sigma is None:
        sigma = 0.01 * ((high - low) or abs(high) or 1.0)
    if grid is None:
        grid = np.linspace(low - 5 * sigma, high + 5 * sigma, 1001)
    bells = np.exp(-0.5 * ((grid[:, None] - nodes.reshape(-1)) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return Density(grid, bells @ weights.reshape(-1) / n_probes, float(sigma), nodes, weights, n_products)


def eigenvector_directions(
    objective: Objective,
    k: int = 2,
    which: str = "largest",
    *,
    rtol: float = 1e-3,
    max_products: int = 500,
    seed: int = 0,
) -> Slice:
    """Span a slice by eigenvectors of the Hessian at the network, each of norm 1.

    The range of a coordinate is the distance at which the quadratic model `lambda c^2 / 2` rises (or, for a negative
    `lambda`, falls) by 1, `sqrt(2 / |lambda|)`, but at most the norm of the network.

    Args:
        objective: Its origin and selected parameters.
        k: Number of directions.
        which: `"largest"`, `"smallest"`, or `"extremes"`: the first half (rounded up) the largest in descending
            order, then the smallest in ascending order.
        rtol: Relative residual to reach, see `extreme_eigenpairs`.
        max_products: When to give up.
        seed: Seed of the random start.

    Returns:
        A slice whose info holds eigenvalues, residuals, and which of them have converged.

    Raises:
        ValueError: An option is out of range, or the Hessian is not finite.
    """
    if which not in ("largest", "smallest", "extremes"):
        raise ValueError(f"which must be 'largest', 'smallest' or 'extremes', got {which!r}")
    k = whole_number("k", k, 1)
    n_upper = {"largest": k, "smallest": 0, "extremes": (k + 1) // 2}[which]
    ends, n = ("both", n_upper) if which == "extremes" else (which, k)
    pairs = extreme_eigenpairs(objective, None, n, which=ends, rtol=rtol, max_products=max_products, seed=seed)
    if not np.isfinite(pairs.values).all():
        raise ValueError("the Hessian at the network is not finite: it has no eigenvectors")
    values = pairs.values[:k]
    reach = float(objective.origin.double().norm()) or 1.0
    extents = [min(math.sqrt(2 / abs(value)) if value else math.inf, reach) for value in values]
    info = {
        "kind": "hessian",
        "which": which,
        "seed": seed,
        "eigenvalues": values.tolist(),
        "residuals": pairs.residuals[:k].tolist(),
        "converged": pairs.converged[:k].tolist(),
        "labels": [
            f"Hessian eigenvector {i + 1} (λ = {value:.3g})"
            if i < n_upper
            else f"Hessian eigenvector {i - n_upper + 1} from below (λ = {value:.3g})"
            for i, value in enumerate(values)
        ],
        "unit": "distance in parameter space",
    }
    extent = tuple((-float(f"{e:.4g}"), float(f"{e:.4g}")) for e in extents)
    return Slice(objective.origin, pairs.vectors[:k].to(objective.origin), info, extent)


def curvature_map(
    objective: Objective,
    slice: Slice,
    *,
    resolution: int | Sequence[int] = 21,
    extent: Sequence[tuple[float, float]] | tuple[float, float] | None = None,
    axes: Sequence[np.ndarray] | None = None,
    rtol: float = 1e-2,
    max_products: int = 200,
    seed: int = 0,
    path: str | os.PathLike | None = None,
    progress: bool = True,
    interval: float = 2.0,
) -> Surface:
    """Map the extreme eigenvalues of the Hessian over a slice, and `|lambda_min / lambda_max|`.

    Where the ratio is small the loss is convex to that extent, however the slice looks; where it is not, the
    picture hides directions of descent (Li et al. 2018, arXiv:1712.09913, section 6). The Hessian is that of
    all parameters, not of the slice. A path that already holds a part of the same map is continued.

    Args:
        objective: Loss and data. Batch-norm statistics are the origin's everywhere, unless the policy is `"batch"`.
        slice: Origin and directions.
        resolution: Points along each axis, one number or one per axis.
        extent: Range (low, high) of the coordinates, one for all axes or one per axis. Default: the slice's own.
        axes: The coordinates themselves, one array per direction, instead of resolution and extent.
        rtol: Relative residual to reach, see `extreme_eigenpairs`.
        max_products: When to give up at a point; the residual then says how far it got.
        seed: Seed of the random start.
        path: HDF5 file to keep the map in while it is computed and afterwards.
        progress: Show a progress bar with the time left.
        interval: Seconds between two writes of the values.

    Returns:
        A surface with the metrics `ratio`, `lambda_min`, `lambda_max`, and `residual`, the larger of the two relative
        residuals; NaN where the Hessian is not finite.

    Raises:
        ValueError: Axes, resolution or extent do not fit the slice, or the file holds another surface.
        BlockingIOError: Another process is writing the file.
    """
    _size(objective)
    rtol, max_products = real_number("rtol", rtol, above=0), whole_number("max_products", max_products, 1)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    grid = axes_of(slice, resolution if axes is None else None, extent, axes)
    surface = empty_surface(grid, ["ratio", "lambda_min", "lambda_max", "residual"])
    surface.origin, surface.directions = slice.origin.cpu().numpy(), slice.directions.cpu().numpy()
    fresh = surface.provenance = provenance_of(objective, slice, checkpoint=None)
    note = f"extreme Hessian eigenvalues by Lanczos, rtol {rtol:g}, at most {max_products} products a point"
    fresh["plan"] = {"name": "curvature", "notes": [note, *objective.notes], "chunk_size": objective.chunk_size}
    fingerprint = {**fingerprint_of(objective, slice, surface), "curvature": f"{rtol=} {max_products=} {seed=}"}
    with closing(SurfaceStore(surface, fingerprint, path, interval)) as store:
        check_same_values(surface, fresh)
        objective = copy.copy(objective)  # a map continued has the digits of one that was never interrupted
        objective.chunk_size = surface.provenance["plan"]["chunk_size"]

        start, before = time.perf_counter(), surface.provenance["seconds"]
        todo = [tuple(index) for index in coarse_to_fine(surface.shape) if not surface.done[tuple(index)]]
        try:
            with tqdm(
                total=surface.done.size, initial=store.n_continued, desc="curvature", unit="point", disable=not progress
            ) as bar:
                for index in todo:
                    point = slice.at([axis[i] for axis, i in zip(grid.values(), index, strict=True)])
                    store.record(index, _extremes(objective, point, rtol, max_products, seed))
                    bar.update()
        finally:
            surface.provenance["seconds"] = before + time.perf_counter() - start
            store.finish()
    return surface


def _extremes(objective: Objective, theta: Tensor, rtol: float, max_products: int, seed: int) -> dict[str, float]:
    pairs = extreme_eigenpairs(objective, theta, which="both", rtol=rtol, max_products=max_products, seed=seed)
    largest, smallest = pairs.values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(smallest / largest)
    return {
        "ratio": float(ratio),
        "lambda_min": float(smallest),
        "lambda_max": float(largest),
        "residual": float(relative_residuals(pairs).max()),
    }


def _size(objective: Objective) -> int:
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    return objective.layout.p


def _grid(values: ArrayLike) -> np.ndarray:
    try:
        grid = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"grid must be an array of numbers, got {values!r}") from error
    if grid.ndim != 1:
        raise ValueError(f"grid needs shape [g], got {grid.shape}")
    return grid


def _noise(objective: Objective) -> float:
    return 8 * torch.finfo(objective.dtype).eps
