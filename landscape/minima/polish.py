"""Descend from where training ended to a critical point of the loss, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor
from tqdm.auto import tqdm

from landscape.arguments import expect, real_number, whole_number
from landscape.hessian import Hessian
from landscape.losses import is_cross_entropy
from landscape.minima.newton import Derivatives, Ends, descend, rounding
from landscape.objective import Objective
from landscape.parameters import real_tensor

GTOL = 1e-10
METHODS = ("newton", "krylov")
NEWTON_BELOW = 150  # parameters; beyond, building whole Hessians takes longer than their products
_COARSE, _FINE = 1e-7, 1e-6  # relative gradient norms at which L-BFGS and the first trust region hand over
_ROUNDS = 4
_SMALL = 1e-6  # relative gradient norm from which on infinity is looked for
_SHORT = 1e-3  # relative distance per factor e of the gradient, below which a point is not on its way to infinity
_STEADY = 0.55  # what is left of that distance for the next factor
_PRODUCTS = 500  # Hessian-vector products for one Newton step
_FOLLOW = 60  # steps that the gradient may take to become a tenth
_FLAT = 1e-13  # relative curvature that still counts on the way to infinity

Descent = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Polished:
    """Where a descent has ended.

    Attributes:
        theta: `[p]` float64.
        loss: The training loss there.
        gradient_norm: `||g||`, Euclidean.
        status: `"converged"`: the gradient vanishes. `"at infinity"`: there is no finite minimum, the loss tends to its
            infimum as the parameters grow. `"not converged"`, `"not finite"`.
        n_steps: Steps tried.
        method: `"newton"` or `"krylov"`.
    """

    theta: Tensor
    loss: float
    gradient_norm: float
    status: str
    n_steps: int
    method: str


def polish(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    gtol: float = GTOL,
    max_steps: int = 5000,
    method: str | None = None,
) -> Polished:
    """Descend to a critical point of the training loss.

    The gradient counts as zero when `||g|| <= gtol (1 + |L|)`. Two methods:

    - `"newton"`: Newton's method in a trust region with exact Hessians, see `newton`.
    - `"krylov"`: L-BFGS of SciPy; the last digits, where differences of losses are rounding, by Newton steps (MINRES)
      that must shorten the gradient; where these fail, a trust region with Hessian-vector products (trust-krylov).

    Cross-entropy without a weight penalty has no finite minimum where the network separates the data: the gradient
    vanishes as the parameters grow. So from a point with a small gradient but a long Newton step the descent goes on,
    until the gradient is a tenth, and a tenth again. Where the distances covered, for each factor of the gradient, are
    more than a thousandth of `1 + ||theta||` and stay alike, and the norm grows, the status is "at infinity". Near a
    minimum they shrink like the gradient, near one of fourth order still to 0.46. Below its rounding error, 2e-15,
    cross-entropy counts as at infinity, too. With a penalty a loss that is bounded below has a
    finite minimum: no such check.

    Where the loss has kinks (ReLU), a descent may end on one, where no gradient vanishes: "not converged".

    Args:
        objective: Loss and data; float64 is used, whatever its own precision.
        theta: `[p]` where to start. Default: the objective's network.
        gtol: Relative gradient norm to reach; beyond it, a few steps more are taken while each halves it.
        max_steps: Steps to try at most.
        method: Default: `"newton"` below 150 parameters.

    Raises:
        ValueError: An option is out of range, or `theta` has another length.

    Example:
        >>> objective = Objective(model, data, penalty=1e-4)  # doctest: +SKIP
        >>> polish(objective).status  # doctest: +SKIP
        'converged'
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    start = objective.point(objective.origin if theta is None else theta)
    return polish_many(objective, start[None], gtol=gtol, max_steps=max_steps, method=method, progress=False)[0]


def polish_many(
    objective: Objective,
    thetas: Tensor,
    *,
    gtol: float = GTOL,
    max_steps: int = 5000,
    method: str | None = None,
    progress: bool = True,
) -> list[Polished]:
    """Descend from many points, as `polish` does from one.

    With `"newton"` all points are differentiated together (`torch.func.vmap`) where the model allows it, with
    `"krylov"` they are polished one after another.

    Args:
        objective: Loss and data; float64 is used, whatever its own precision.
        thetas: `[n, p]` where to start.
        gtol: Relative gradient norm to reach.
        max_steps: Steps to try at most, for each.
        method: Default: `"newton"` below 150 parameters.
        progress: Show a progress bar.

    Returns:
        One result for each, in their order.

    Raises:
        ValueError: An option is out of range, or the points have another shape.
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    p = objective.layout.p
    if real_tensor("thetas", thetas).ndim != 2 or thetas.shape[1] != p:
        raise ValueError(f"the points to start from need shape [n, {p}], got {tuple(thetas.shape)}")
    gtol, max_steps = real_number("gtol", gtol, above=0), whole_number("max_steps", max_steps, 1)
    method = method or ("newton" if p < NEWTON_BELOW else "krylov")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    objective = objective.to(dtype=torch.float64)
    points = thetas.detach().to(objective.device, torch.float64)
    results: list[Polished | None] = [None] * len(points)
    with tqdm(total=len(points), desc="polish", unit="network", disable=not progress) as bar:
        started = []
        for i, point in enumerate(points):
            loss, gradient = objective.loss_and_gradient(point)
            if np.isfinite(loss) and bool(gradient.isfinite().all()):
                started.append(i)
            else:
                results[i] = Polished(point.clone(), loss, float(gradient.norm()), "not finite", 0, method)
                bar.update()
        if method == "krylov":
            for i in started:
                results[i] = _krylov(objective, points[i], gtol, max_steps)
                bar.update()
        elif started:
            derivatives = Derivatives(objective, points[started[0]])
            ends = descend(derivatives, points[started].cpu().numpy(), gtol=gtol, max_steps=max_steps, bar=bar)

            def descend_to(thetas: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                on = descend(derivatives, thetas, gtol=norms, max_steps=_FOLLOW, further=0, flat=_FLAT)
                return on.thetas, np.linalg.norm(on.gradients, axis=1)

            for i, result in zip(started, _results(objective, ends, gtol, method, descend_to), strict=True):
                results[i] = result
    return [result for result in results if result is not None]


def newton_step(objective: Objective, theta: Tensor, gradient: Tensor) -> Tensor:
    """Solve `H s = -g` by at most 500 products in MINRES, which finds the shortest solution where `H` is singular.

    Args:
        objective: In float64.
        theta: `[p]`.
        gradient: `[p]` the gradient there.
    """
    p = len(gradient)
    hessian = Hessian(objective, theta)

    def product(v: np.ndarray) -> np.ndarray:
        return hessian.products(torch.from_numpy(v).reshape(1, -1))[0].cpu().numpy()

    operator = LinearOperator((p, p), matvec=product, dtype=np.float64)
    with np.errstate(all="ignore"):
        step, _ = minres(operator, -gradient.cpu().numpy(), rtol=1e-8, maxiter=min(_PRODUCTS, 3 * p))
    return torch.from_numpy(step).to(theta)


def runs_away(objective: Objective, ends: Ends, descend_to: Descent) -> np.ndarray:
    """Tell from which points the loss goes on falling as the parameters grow, see `polish`; `[n]` bool.

    Args:
        objective: In float64.
        ends: The points.
        descend_to: Descends from points `[m, p]` until the gradients are as short as `[m]`; returns where that is.
    """
    thetas, losses, lengths = ends.thetas, ends.losses, np.linalg.norm(ends.gradients, axis=1)
    away = np.zeros(len(thetas), dtype=bool)
    if objective.penalty:
        return away
    if objective.is_classification and is_cross_entropy(objective.loss):
        away |= losses <= rounding(0)  # it is positive at every finite point
    scale = 1 + np.linalg.norm(thetas, axis=1)
    doubtful = ~away & (lengths <= _SMALL * (1 + np.abs(losses)))
    doubtful &= np.linalg.norm(ends.newton, axis=1) > _SHORT * scale
    chosen = np.flatnonzero(doubtful)
    if not len(chosen):
        return away
    points, norms, speeds = [thetas[chosen]], [lengths[chosen]], []
    for _ in range(2):
        next_points, next_norms = descend_to(points[-1], 0.1 * norms[-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            speeds.append(np.linalg.norm(next_points - points[-1], axis=1) / np.log(norms[-1] / next_norms))
        points.append(next_points)
        norms.append(next_norms)
    shorter = (norms[1] < 0.3 * norms[0]) & (norms[2] < 0.3 * norms[1])
    grown = np.linalg.norm(points[2], axis=1) > np.linalg.norm(points[0], axis=1)
    away[chosen] = shorter & grown & (speeds[0] > _SHORT * scale[chosen]) & (speeds[1] > _STEADY * speeds[0])
    return away


def _krylov(objective: Objective, start: Tensor, gtol: float, max_steps: int) -> Polished:
    """Polish by SciPy's minimizers with products, and Newton steps for the last digits."""

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = objective.loss_and_gradient(torch.from_numpy(x).to(start))
        # a minimizer must step back from where the loss is not finite
        return (loss if np.isfinite(loss) else np.inf), gradient.cpu().numpy()

    @lru_cache(maxsize=1)  # the minimizer asks for many products at one point
    def hessian_at(x: bytes) -> Hessian:
        return Hessian(objective, torch.frombuffer(bytearray(x), dtype=torch.float64))

    def product(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        return hessian_at(x.tobytes()).products(torch.from_numpy(v).reshape(1, -1))[0].cpu().numpy()

    def descend_to(thetas: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta, _, _ = _refine(objective, torch.from_numpy(thetas[0]).to(start), norms[0], further=0)
        return theta.cpu().numpy()[None], objective.gradient(theta).norm().cpu().numpy()[None]

    x, n_steps = start.cpu().numpy(), 0
    loss, gradient = function(x)
    if np.linalg.norm(gradient) > _COARSE * (1 + abs(loss)):
        options = {"gtol": _COARSE / len(x) ** 0.5, "ftol": 0, "maxiter": max_steps, "maxcor": 20}
        with np.errstate(all="ignore"):
            found = minimize(function, x, jac=True, method="L-BFGS-B", options=options)
        if np.isfinite(found.fun) and found.fun <= loss:
            x, n_steps = found.x, found.nit
    for i in range(_ROUNDS):
        loss, gradient = function(x)
        fine = max(gtol, _FINE * 0.1**i) * (1 + abs(loss))
        if np.linalg.norm(gradient) > fine and n_steps < max_steps:
            options = {"gtol": fine, "maxiter": max_steps - n_steps}
            with np.errstate(all="ignore"):
                found = minimize(function, x, jac=True, hessp=product, method="trust-krylov", options=options)
            x, n_steps = found.x, n_steps + found.nit
        theta, newton, n_newton = _refine(objective, torch.from_numpy(x).to(start), gtol * (1 + abs(loss)), further=3)
        x, n_steps = theta.cpu().numpy(), n_steps + n_newton
        loss, gradient = function(x)
        if np.linalg.norm(gradient) <= gtol * (1 + abs(loss)) or n_steps >= max_steps:
            break
    ends = Ends(x[None], np.array([loss]), gradient[None], newton.cpu().numpy()[None], np.array([n_steps]))
    return _results(objective, ends, gtol, "krylov", descend_to)[0]


def _refine(objective: Objective, theta: Tensor, norm: float, further: int) -> tuple[Tensor, Tensor, int]:
    """Take Newton steps as long as they shorten the gradient, to `norm` and, if they halve it, some beyond.

    Returns:
        The last point, the Newton step from there, how many steps were taken.
    """
    n_steps, n_further = 0, 0
    gradient = objective.gradient(theta)
    while True:
        step = newton_step(objective, theta, gradient)
        reached = bool(gradient.norm() <= norm)
        if n_steps >= _FOLLOW or (reached and n_further == further):
            return theta, step, n_steps
        new = objective.gradient(theta + step)
        if not new.norm() < (0.5 if reached else 0.9) * gradient.norm():
            return theta, step, n_steps
        theta, gradient, n_steps, n_further = theta + step, new, n_steps + 1, n_further + reached


def _results(objective: Objective, ends: Ends, gtol: float, method: str, descend_to: Descent) -> list[Polished]:
    norms = np.linalg.norm(ends.gradients, axis=1)
    results = []
    for i, away in enumerate(runs_away(objective, ends, descend_to)):
        loss, norm = float(ends.losses[i]), float(norms[i])
        status = "converged" if norm <= gtol * (1 + abs(loss)) else "not converged"
        theta = torch.from_numpy(ends.thetas[i].copy()).to(objective.device)
        results.append(Polished(theta, loss, norm, "at infinity" if away else status, int(ends.n_steps[i]), method))
    return results
