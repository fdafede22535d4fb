"""Lanczos methods for a symmetric matrix that is known only through its products with vectors.

The loops are our own because the products, one pass over all the data each, are what costs: full reorthogonalization
in float64 and a stop on the residual need a fraction of those of power iteration, the products may be float32, vectors
go together so that they share a pass, and every pair says how far it is from an eigenpair.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Products = Callable[[Tensor], Tensor]
"""`[m, p]` float64 -> the product of the matrix with each row, `[m, p]` float64."""

_BASIS_BYTES = 2 << 30  # a longer basis is restarted from its best vectors


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues of a symmetric matrix, each with its eigenvector and the evidence for it.

    Attributes:
        values: `[k]` float64.
        vectors: `[k, p]` float64, orthonormal rows; the largest entry of each is positive.
        residuals: `[k]` the norms `||H v - lambda v||`; an eigenvalue lies within that distance of `lambda`.
        converged: `[k]` whether the residual is as small as was asked for, and no pair before it can be missing.
        n_products: How many products with a vector it took.
    """

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    converged: np.ndarray
    n_products: int


def extreme_pairs(
    products: Products,
    p: int,
    n_largest: int,
    n_smallest: int,
    *,
    rtol: float,
    noise: float,
    max_products: int,
    seed: int,
    device: torch.device | None = None,
) -> Eigenpairs:
    """Find eigenpairs at the ends of the spectrum by block Lanczos with full reorthogonalization and thick restarts.

    From a random block, the orthonormal rows `V` of a Krylov basis are built, `H V^T = V^T T + Q^T C`, where `Q` is the
    next block. An eigenpair `(lambda, s)` of the small matrix `T` gives the pair `(lambda, V^T s)`, with the residual

        ||H v - lambda v||^2 = ||T s - lambda s||^2 + ||C s||^2,

    whose first part is the rounding of the products (Parlett 1998, The Symmetric Eigenvalue Problem, chapter 13; Wu
    and Simon 2000, doi:10.1137/S0895479898334605, for restarts; after one, residuals are computed anew). A basis that
    was started from `r` vectors contains each eigenvalue at most `r` times: where one is found so often and another is
    wanted beyond it, a further random start is added, and no copy is missed.

    Args:
        products: The matrix.
        p: Its size.
        n_largest: Pairs wanted from the upper end.
        n_smallest: Pairs wanted from the lower end; both together at most `p`.
        rtol: A pair has converged when its residual is at most `rtol |lambda|`, or `4 noise max |lambda|`.
        noise: Relative rounding error of a product.
        max_products: When to give up; at least as many as pairs wanted.
        seed: Seed of the random starts.
        device: Where the vectors are.

    Returns:
        The largest in descending order, then the smallest in ascending order; NaN if a product is not finite.
    """
    n_wanted = n_largest + n_smallest
    block = 1 if max(n_largest, n_smallest) == 1 else 2
    capacity = min(p, max(_BASIS_BYTES // (8 * p), 2 * n_wanted + 20))
    krylov = _Krylov(products, p, capacity, noise, seed, device)
    krylov.add_random(block)
    mature = [0] * block  # the step from which a start counts: a late one needs as many steps as were done before it
    step = 0
    while True:
        step += 1
        if not krylov.extend():
            return _not_finite(n_wanted, krylov)
        values, s, residuals = krylov.ritz(n_largest, n_smallest)
        floor = 4 * noise * krylov.scale
        converged = residuals <= np.maximum(rtol * np.abs(values), floor)
        complete = krylov.n == p
        done = krylov.n >= n_wanted and bool(converged.all())
        n_starts = sum(start <= step for start in mature)
        ends = (slice(n_largest), slice(n_largest, None))
        sure = complete or all(_no_copy_missing(values[end], residuals[end] + floor, n_starts) for end in ends)
        if complete or (done and sure):
            break
        if done and n_starts == len(mature):
            if 4 * block >= capacity < p:
                break
            block += 1
        if krylov.n >= n_wanted and krylov.n_products + block > max_products:
            break
        if krylov.n + block > capacity < p:
            krylov.restart(n_largest, n_smallest, room=block)
        mature += [2 * step] * krylov.add_random(block - len(krylov.q))

    vectors = krylov.vectors(s)
    vectors *= vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True)).sign()
    if krylov.restarted:
        images = products(vectors)
        krylov.n_products += n_wanted
        residuals = (images - torch.from_numpy(values).to(images)[:, None] * vectors).norm(dim=1).cpu().numpy()
        converged = residuals <= np.maximum(rtol * np.abs(values), floor)
    return Eigenpairs(values, vectors, residuals, converged & (sure or not done), krylov.n_products)


class _Krylov:
    """An orthonormal basis `V`, the matrix in it, and the next block: `H V^T = V^T T + Q^T C`."""

    def __init__(
        self, products: Products, p: int, capacity: int, noise: float, seed: int, device: torch.device | None
    ) -> None:
        self.products = products
        self.rows = torch.empty(capacity, p, dtype=torch.float64, device=device)
        self.n = 0
        self.q = self.rows[:0]  # [b, p]
        self.t = np.zeros((0, 0))  # [n, n]
        self.c = np.zeros((0, 0))  # [b, n]
        self.noise = noise
        self.scale = 0.0  # of the largest |eigenvalue|
        self.n_products = 0
        self.restarted = False
        self.generator = torch.Generator().manual_seed(seed)

    def add_random(self, n: int) -> int:
        """Add random vectors to the next block, where there is room in the space; return how many."""
        n = min(n, self.rows.shape[1] - self.n - len(self.q))
        if n <= 0:
            return 0
        rows = torch.randn(n, self.rows.shape[1], generator=self.generator, dtype=torch.float64).to(self.rows)
        q, _, _ = _orthonormalize(rows, torch.cat([self.rows[: self.n], self.q]), 0.0)
        self.q = torch.cat([self.q, q])
        self.c = np.vstack([self.c, np.zeros((n, self.n))])
        return n

    def extend(self) -> bool:
        """Multiply the next block and make it part of the basis; return whether the products are finite."""
        images = self.products(self.q)
        self.n_products += len(self.q)
        if not torch.isfinite(images).all():
            return False
        old, self.n = self.n, self.n + len(self.q)
        self.rows[old : self.n] = self.q
        self.scale = max(self.scale, float(images.norm(dim=1).max()))
        self.q, columns, c = _orthonormalize(images, self.rows[: self.n], self.noise * self.scale)
        self.t = np.hstack([np.vstack([self.t, self.c]), columns])
        self.c = np.hstack([np.zeros((len(self.q), old)), c])
        return True

    def ritz(self, n_largest: int, n_smallest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the values `[k]`, coefficients `[n, k]` and residuals `[k]` of the pairs at the ends."""
        values, s = np.linalg.eigh((self.t + self.t.T) / 2)
        self.scale = max(self.scale, float(np.abs(values).max()))
        n = self.n
        chosen = np.arange(n)
        if n >= n_largest + n_smallest:
            chosen = np.concatenate([n - 1 - np.arange(n_largest), np.arange(n_smallest)])
        values, s = values[chosen], s[:, chosen]
        inside = np.linalg.norm(self.t @ s - values * s, axis=0)
        return values, s, np.hypot(inside, np.linalg.norm(self.c @ s, axis=0))

    def restart(self, n_largest: int, n_smallest: int, room: int) -> None:
        """Keep half of the basis: the pairs nearest to the wanted ends."""
        n_wanted = n_largest + n_smallest
        keep = min(max(n_wanted, len(self.rows) // 2), len(self.rows) - room)
        upper = round(keep * n_largest / n_wanted)
        _, s, _ = self.ritz(upper, keep - upper)
        self.rows[:keep] = self.vectors(s)
        self.t, self.c, self.n = s.T @ self.t @ s, self.c @ s, keep
        self.restarted = True

    def vectors(self, s: np.ndarray) -> Tensor:
        """Return combinations of the basis, `[k, p]`, for coefficients `[n, k]`."""
        return torch.from_numpy(s.T.copy()).to(self.rows) @ self.rows[: self.n]


def _no_copy_missing(values: np.ndarray, tolerances: np.ndarray, n_starts: int) -> bool:
    """Tell whether each value at one end, but the last, is found less often than it could be.

    Args:
        values: `[k]` sorted; those closer than their tolerances count as equal.
        tolerances: `[k]`.
        n_starts: How often each could be found.
    """
    copies = 1
    for i in range(1, len(values)):
        if abs(values[i] - values[i - 1]) <= tolerances[i] + tolerances[i - 1]:
            copies += 1
        elif copies >= n_starts:
            return False
        else:
            copies = 1
    return True


def _orthonormalize(rows: Tensor, basis: Tensor, atol: float) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Split rows into what a basis spans and an orthonormal rest, `rows^T = basis^T A + q^T R`.

    Args:
        rows: `[b, p]`.
        basis: `[n, p]`, orthonormal.
        atol: A rest of at most this norm is left out.

    Returns:
        `q` `[r, p]` with `r <= b`, `A` `[n, b]`, `R` `[r, b]`.
    """
    a = rows.new_zeros(len(rows), len(basis))
    for _ in range(2):  # the second pass removes what rounding left
        part = rows @ basis.T
        rows = rows - part @ basis
        a += part
    q: list[Tensor] = []
    r = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        before = float(row.norm())
        for _ in range(2):
            for j, other in enumerate(q):
                dot = float(row @ other)
                row = row - dot * other
                r[j, i] += dot
        norm = float(row.norm())
        if norm > max(atol, 1e-14 * before) and len(basis) + len(q) < rows.shape[1]:
            r[len(q), i] = norm
            row = row / norm
            row = row - (row @ basis.T) @ basis  # a short rest has lost digits
            q.append(row / row.norm())
    return torch.stack(q) if q else rows[:0], a.T.cpu().numpy(), r[: len(q)]


def _not_finite(k: int, krylov: _Krylov) -> Eigenpairs:
    nothing = np.full(k, math.nan)
    vectors = krylov.rows.new_full((k, krylov.rows.shape[1]), math.nan)
    return Eigenpairs(nothing, vectors, nothing.copy(), np.zeros(k, dtype=bool), krylov.n_products)


def quadrature(
    products: Products,
    p: int,
    n_probes: int,
    n_steps: int,
    *,
    noise: float,
    seed: int,
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute Gauss quadratures of the spectral density of a symmetric matrix by stochastic Lanczos.

    Lanczos from a random vector `z`, `||z|| = 1`, gives a tridiagonal `T = S diag(theta) S^T` with

        z^T f(H) z = sum_i S_0i^2 f(theta_i),

    exactly for polynomials `f` of degree below `2 n_steps`; the weights are the squared *first* components of the
    eigenvectors (Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974). Averaged over probes with entries
    `+-1/sqrt(p)`, this estimates `tr f(H) / p`.

    Args:
        products: The matrix.
        p: Its size.
        n_probes: Number of random vectors.
        n_steps: Lanczos steps of each, at most `p`.
        noise: Relative rounding error of a product.
        seed: Seed of the probes.
        device: Where the vectors are.

    Returns:
        Nodes and weights `[n_probes, n_steps]`, the weights of each row adding up to 1, and the number of products. A
        probe that finds an invariant subspace has fewer nodes; further ones have weight 0.
    """
    generator = torch.Generator().manual_seed(seed)
    t = np.zeros((n_probes, n_steps, n_steps))
    n_products = 0
    together = max(1, _BASIS_BYTES // (8 * p * n_steps))
    for first in range(0, n_probes, together):
        n = min(together, n_probes - first)
        basis = torch.zeros(n, n_steps, p, dtype=torch.float64, device=device)
        basis[:, 0] = rademacher(n, p, generator, device) / math.sqrt(p)
        going = torch.arange(n, device=device)
        scale = torch.zeros(n, dtype=torch.float64, device=device)
        for j in range(n_steps):
            rest = products(basis[going, j])
            n_products += len(going)
            scale[going] = torch.maximum(scale[going], rest.norm(dim=1))
            known = basis[going, : j + 1]  # [n, j + 1, p]
            alpha = (rest * known[:, j]).sum(dim=1)
            t[first + going.cpu().numpy(), j, j] = alpha.cpu().numpy()
            for _ in range(2):
                part = torch.bmm(known, rest[:, :, None])
                rest = rest - torch.bmm(part.transpose(1, 2), known)[:, 0]
            beta = rest.norm(dim=1)
            more = beta > 10 * noise * scale[going]
            going, rest, beta = going[more], rest[more], beta[more]
            if j + 1 == n_steps or not len(going):
                break
            index = first + going.cpu().numpy()
            t[index, j, j + 1] = t[index, j + 1, j] = beta.cpu().numpy()
            basis[going, j + 1] = rest / beta[:, None]
    if not np.isfinite(t).all():
        return np.full((n_probes, n_steps), math.nan), np.full((n_probes, n_steps), math.nan), n_products
    nodes, s = np.linalg.eigh(t)
    return nodes, s[:, 0, :] ** 2, n_products


def rademacher(n: int, p: int, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """Draw `[n, p]` float64 entries +1 and -1, the same on every device."""
    return (2.0 * torch.randint(2, (n, p), generator=generator, dtype=torch.int8).double() - 1).to(device)
