"""The index of a critical point: how many eigenvalues of the Hessian are negative, and how many vanish."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.arguments import LARGEST_SEED, expect, real_number, whole_number
from landscape.hessian import Hessian
from landscape.lanczos import extreme_pairs
from landscape.objective import Objective

DENSE_BELOW = 2000  # parameters; a Hessian of that size takes 32 MB
_ROWS = 64  # of the identity, multiplied together
_MAX_PAIRS = 64
_LANCZOS_RTOL = 1e-5


@dataclass(frozen=True, eq=False)
class Index:
    """The signs of the Hessian's eigenvalues at a point.

    Attributes:
        n_negative: How many are below `-tol`.
        n_flat: How many are within `tol` of zero.
        exact: Whether these are all there are; if not, there are at least as many.
        tol: Below which an eigenvalue counts as zero.
        values: `[k]` eigenvalues in ascending order: all of them, or those that were found at the lower end.
        vectors: `[m, p]` eigenvectors of the `m = n_negative + n_flat` first of them, but at least of one.
        residuals: `[k]` bounds of their errors: `||H v - lambda v||`, or the rounding error of a dense Hessian.
        largest: The largest eigenvalue.
        method: `"dense"` or `"lanczos"`.
    """

    n_negative: int
    n_flat: int
    exact: bool
    tol: float
    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    largest: float
    method: str

    def describe(self) -> str:
        """Say in a line what was counted, and how."""
        least = "" if self.exact else "at least "
        return (
            f"{least}{self.n_negative} negative and {least}{self.n_flat} flat directions (|eigenvalue| <= "
            f"{self.tol:.1e}); smallest eigenvalue {self.values[0]:.3e} +- {self.residuals[0]:.0e}, largest "
            f"{self.largest:.3e} ({self.method})"
        )


def dense_hessian(objective: Objective, theta: Tensor | None = None) -> np.ndarray:
    """Compute the Hessian of the training loss, `[p, p]` float64, from its products with the identity.

    Args:
        objective: Loss and data.
        theta: `[p]`. Default: the objective's network.

    Raises:
        ValueError: The result is not symmetric: something in the model cannot be differentiated twice.
    """
    products = Hessian(objective, theta).products
    hessian = torch.cat([products(rows) for rows in _identity(objective)])
    scale, skew = float(hessian.abs().max()), float((hessian - hessian.T).abs().max())
    if skew > _noise(objective) ** 0.5 * scale:
        raise ValueError(
            f"the Hessian is not symmetric (entries up to {scale:.2e}, differences up to {skew:.2e}): is there an "
            "operation with a wrong second derivative in the model or the loss?"
        )
    return ((hessian + hessian.T) / 2).cpu().numpy()


def index(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    tol: float | None = None,
    dense_below: int = DENSE_BELOW,
    max_products: int = 500,
    seed: int = 0,
) -> Index:
    """Count the negative and the vanishing eigenvalues of the Hessian.

    Below `dense_below` parameters the whole Hessian is built and diagonalized. Above, Lanczos iterations go up from the
    lower end until they have found an eigenvalue beyond `tol`, or as many as they can; what they count is then a lower
    bound: Ritz values lie above the eigenvalues of the same rank (Cauchy interlacing), and none of those found below
    `-tol` can be missing.

    Args:
        objective: Loss and data; they are used in the objective's own precision.
        theta: `[p]`. Default: the objective's network.
        tol: Below which an eigenvalue counts as zero. Default: the largest |eigenvalue| times the square root of the
            rounding unit, 1.5e-8 in float64, for a dense Hessian; times 1e-5, if that is larger, for Lanczos.
        dense_below: Number of parameters.
        max_products: Hessian-vector products that Lanczos may use.
        seed: Of the start of Lanczos.

    Raises:
        ValueError: The Hessian is not finite or not symmetric, or `tol` is negative.
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    if tol is not None:
        tol = real_number("tol", tol, 0)
    dense_below = whole_number("dense_below", dense_below, 0)
    max_products = whole_number("max_products", max_products, 1)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    if objective.layout.p < dense_below:
        hessian = dense_hessian(objective, theta)
        if not np.isfinite(hessian).all():
            raise ValueError("the Hessian is not finite at this point")
        values, vectors = np.linalg.eigh(hessian)
        return index_of(values, vectors.T, tol, _noise(objective), objective.device)
    return _lanczos_index(objective, theta, tol, max_products, seed)


def index_of(
    values: np.ndarray, vectors: np.ndarray, tol: float | None, noise: float, device: torch.device | None = None
) -> Index:
    """Count the signs of eigenvalues that are all known.

    Args:
        values: `[p]`, ascending.
        vectors: `[p, p]`, one eigenvector per row.
        tol: See `index`.
        noise: Relative rounding error of the Hessian.
        device: Where the vectors shall be.
    """
    scale = float(np.abs(values).max())
    tol = scale * (noise / 8) ** 0.5 if tol is None else tol
    n_negative, n_below = int((values < -tol).sum()), int((values <= tol).sum())
    kept = torch.from_numpy(vectors[: max(1, n_below)].copy()).to(device)
    residuals = np.full(len(values), noise * scale)
    return Index(n_negative, n_below - n_negative, True, tol, values, kept, residuals, float(values[-1]), "dense")


def _lanczos_index(
    objective: Objective, theta: Tensor | None, tol: float | None, max_products: int, seed: int
) -> Index:
    products = Hessian(objective, theta).products
    p, noise = objective.layout.p, _noise(objective)

    def pairs(n_largest: int, n_smallest: int, rounding: float, budget: int):
        return extreme_pairs(
            products,
            p,
            n_largest,
            n_smallest,
            rtol=1e-3,
            noise=rounding,
            max_products=budget,
            seed=seed,
            device=objective.device,
        )

    ends = pairs(1, 1, noise, max_products)
    if not np.isfinite(ends.values).all():
        raise ValueError("the Hessian is not finite at this point")
    largest, scale = float(ends.values[0]), float(np.abs(ends.values).max())
    if tol is None:
        tol = scale * max((noise / 8) ** 0.5, _LANCZOS_RTOL)
    k, used = 4, ends.n_products
    while True:
        # a pair is as good as its count needs when its residual is a tenth of `tol`
        found = pairs(0, min(k, p), max(noise, 0.025 * tol / scale) if scale else noise, max(max_products - used, k))
        used += found.n_products
        sure = bool(found.converged.all())
        exact = sure and (k >= p or found.values[-1] > tol)
        if exact or not sure or k >= _MAX_PAIRS or used >= max_products:
            break
        k *= 2
    n_negative, n_below = int((found.values < -tol).sum()), int((found.values <= tol).sum())
    kept = found.vectors[: max(1, n_below)].clone()
    return Index(n_negative, n_below - n_negative, exact, tol, found.values, kept, found.residuals, largest, "lanczos")


def _identity(objective: Objective) -> Iterator[Tensor]:
    p = objective.layout.p
    for first in range(0, p, _ROWS):
        rows = torch.zeros(min(_ROWS, p - first), p, dtype=torch.float64, device=objective.device)
        rows[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = 1
        yield rows


def _noise(objective: Objective) -> float:
    return 8 * torch.finfo(objective.dtype).eps
