"""Newton's method in a trust region for many small networks at once, with their exact Hessians.

Each step minimizes the quadratic model of the loss within a ball,

    s = argmin g^T s + s^T H s / 2,  ||s|| <= radius,    s = -(H + mu I)^{-1} g,  mu >= max(0, -lambda_min),

from the eigenvalues of `H`, the case included where `g` has no part along the lowest eigenvector (More and Sorensen
1983, doi:10.1137/0904038). Near a critical point it converges quadratically; near a saddle it leaves along the negative
direction.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from landscape.critical import dense_hessian
from landscape.hessian import Hessian
from landscape.objective import Objective

log = logging.getLogger(__name__)

EPS = float(np.finfo(np.float64).eps)
_BYTES = 256 << 20  # for the graphs of the points that are differentiated together
_CLOSE = 1e-9  # predicted relative fall of the loss, close to a minimum
_RTOL = 1e-9  # of the transformed derivatives against those of the objective


def rounding(loss: np.ndarray | float) -> np.ndarray:
    """Return the size of a difference of losses that may be rounding."""
    return 8 * EPS * np.maximum(1, np.abs(loss))


@dataclass(eq=False)
class Ends:
    """Where descents have ended.

    Attributes:
        thetas: `[n, p]`.
        losses: `[n]`.
        gradients: `[n, p]`.
        newton: `[n, p]` the steps from there to the critical points of the quadratic models; curvatures count as
            at least the rounding of the largest.
        n_steps: `[n]` steps tried.
    """

    thetas: np.ndarray
    losses: np.ndarray
    gradients: np.ndarray
    newton: np.ndarray
    n_steps: np.ndarray


class Derivatives:
    """Loss, gradient and Hessian of an objective at several points: by `vmap`, or one point after the other.

    Args:
        objective: In float64.
        theta: `[p]` a point at which the derivatives by `vmap` are compared with the objective's own.

    Attributes:
        by_vmap: Whether points are differentiated together; otherwise the log says why not.
    """

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        self.objective = objective
        self._batches = list(objective.splits[""].chunks(objective.chunk_size))
        self._n = 1 if objective.reduction == "sum" else objective.splits[""].n_samples
        self.by_vmap = True
        try:
            graph = max(_graph_bytes(objective, theta, batch) for batch in self._batches)
            self._together = max(1, _BYTES // max(1, graph))
            difference = self._difference(theta)
        except Exception as error:  # whatever a model does that vmap does not support
            self.by_vmap, reason = False, str(error).strip().partition("\n")[0]
        else:
            self.by_vmap, reason = difference <= _RTOL, f"it differs by {difference:.1e} from the objective's gradient"
        if not self.by_vmap:
            log.warning("the networks are differentiated one after another, not by vmap: %s", reason)

    def first(self, thetas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return losses `[n]` and gradients `[n, p]` at points `[n, p]`."""
        if not self.by_vmap:
            found = [self.objective.loss_and_gradient(theta) for theta in self._points(thetas)]
            return np.array([loss for loss, _ in found]), np.stack([g.cpu().numpy() for _, g in found])
        points, penalty = self._points(thetas), self.objective.penalty
        losses, gradients = penalty / 2 * points.square().sum(dim=1), penalty * points
        for batch in self._batches:
            function = grad_and_value(self._share(batch))
            g, value = vmap(function, chunk_size=self._together)(points)
            losses, gradients = losses + value, gradients + g
        return losses.cpu().numpy(), gradients.cpu().numpy()

    def second(self, thetas: np.ndarray) -> np.ndarray:
        """Return Hessians `[n, p, p]` at points `[n, p]`."""
        points, p = self._points(thetas), thetas.shape[1]
        if not self.by_vmap:
            return np.stack([dense_hessian(self.objective, theta) for theta in points])
        hessians = self.objective.penalty * torch.eye(p, dtype=points.dtype, device=points.device)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            for batch in self._batches:
                share = self._share(batch)
                hessian = jacrev(lambda theta, share=share: grad_and_value(share)(theta)[0])
                hessians = hessians + vmap(hessian, chunk_size=max(1, self._together // p))(points)
        return ((hessians + hessians.mT) / 2).cpu().numpy()

    def _share(self, batch: object) -> Callable[[Tensor], Tensor]:
        def share(theta: Tensor) -> Tensor:
            value, weight = self.objective.batch_loss(theta, batch)
            return value * (weight / self._n)

        return share

    def _points(self, thetas: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(thetas)).to(self.objective.device)

    def _difference(self, theta: Tensor) -> float:
        """Compare loss, gradient and a Hessian product with those of the objective; relative."""
        generator = np.random.default_rng(0)
        point, v = theta.cpu().numpy()[None], generator.standard_normal((1, len(theta)))
        (loss,), (gradient,) = self.first(point)
        product = self.second(point)[0] @ v[0]
        own_loss, own_gradient = self.objective.loss_and_gradient(theta)
        own_product = Hessian(self.objective, theta).products(self._points(v))[0]
        found = np.concatenate([[loss], gradient, product])
        own = np.concatenate([[own_loss], own_gradient.cpu().numpy(), own_product.cpu().numpy()])
        return float(np.max(np.abs(found - own)) / (1 + np.max(np.abs(own))))


def descend(
    derivatives: Derivatives,
    thetas: np.ndarray,
    *,
    gtol: float | np.ndarray,
    max_steps: int,
    further: int = 3,
    flat: float = 1e-10,
    bar: tqdm | None = None,
) -> Ends:
    """Descend from each point until the gradient vanishes.

    A step is taken if the loss falls as predicted; where less than rounding is predicted, if the gradient gets shorter;
    close to a minimum, also if the gradient is halved.

    Args:
        derivatives: Of the objective.
        thetas: `[n, p]` float64, at which loss and gradient are finite.
        gtol: Where `||g|| <= gtol (1 + |L|)`, the tolerance is reached; one for all, or `[n]`.
        max_steps: Steps to try at most.
        further: Steps after the tolerance is reached, as long as each halves the gradient.
        flat: Relative curvature below which a direction is treated as if it had that much.
        bar: Counts points that are done.
    """
    n = len(thetas)
    theta = thetas.copy()
    loss, gradient = derivatives.first(theta)
    hessians = derivatives.second(theta)
    finite = np.isfinite(hessians).all(axis=(1, 2))
    values, vectors = np.linalg.eigh(np.where(finite[:, None, None], hessians, 0))
    radius = 0.1 * (1 + np.linalg.norm(theta, axis=1))
    gtol = np.broadcast_to(gtol, n)
    n_steps, n_further, failures = (np.zeros(n, dtype=int) for _ in range(3))
    live = np.flatnonzero(finite)
    for _ in range(max_steps):
        norm = np.linalg.norm(gradient[live], axis=1)
        reached = norm <= gtol[live] * (1 + np.abs(loss[live]))
        enough = reached & (n_further[live] >= further)
        if bar is not None:
            bar.update(int(enough.sum()))
        live, norm, reached = live[~enough], norm[~enough], reached[~enough]
        if not len(live):
            break
        c = _components(vectors[live], values[live], gradient[live], loss[live], flat)
        step, predicted = _step(values[live], c, radius[live], flat)
        trial = theta[live] + np.einsum("npk,nk->np", vectors[live], step)
        new_loss, new_gradient = derivatives.first(trial)
        new_norm = np.linalg.norm(new_gradient, axis=1)
        n_steps[live] += 1

        length = np.linalg.norm(step, axis=1)
        halved = new_norm < 0.5 * norm
        tiny = predicted <= rounding(loss[live])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(np.isfinite(new_loss), (loss[live] - new_loss) / predicted, -1.0)
        taken = np.isfinite(new_norm) & np.where(reached, halved, np.where(tiny, new_norm < norm, ratio > 1e-4))
        # a loss that cancels large terms is rounded more coarsely than its size tells
        taken |= halved & (values[live, 0] > 0) & (predicted <= _CLOSE * (1 + np.abs(loss[live])))
        shrink = ~taken | (~tiny & (ratio < 0.25))
        grow = taken & ~tiny & (ratio > 0.75) & (length > 0.9 * radius[live])
        radius[live] = np.where(shrink, 0.25 * length, np.where(grow, 2 * radius[live], radius[live]))

        failures[live] = np.where(taken, 0, failures[live] + 1)
        n_further[live] += reached
        stuck = radius[live] < EPS * (1 + np.linalg.norm(theta[live], axis=1))
        stuck |= tiny & (failures[live] >= 3)
        done = (reached & ~taken) | stuck

        moved = live[taken]
        theta[moved], loss[moved], gradient[moved] = trial[taken], new_loss[taken], new_gradient[taken]
        if len(moved):
            hessians = derivatives.second(theta[moved])
            finite = np.isfinite(hessians).all(axis=(1, 2))
            values[moved[finite]], vectors[moved[finite]] = np.linalg.eigh(hessians[finite])
            done |= np.isin(live, moved[~finite])
        if bar is not None:
            bar.update(int(done.sum()))
        live = live[~done]
    if bar is not None:
        bar.update(len(live))
    c = _components(vectors, values, gradient, loss, flat)
    newton = np.einsum("npk,nk->np", vectors, -c / np.maximum(np.abs(values), _floor(values, 8 * EPS)))
    return Ends(theta, loss, gradient, newton, n_steps)


def _components(
    vectors: np.ndarray, values: np.ndarray, gradient: np.ndarray, loss: np.ndarray, flat: float
) -> np.ndarray:
    """Return gradients in the eigenvectors, `[n, p]`, without what is rounding along flat directions."""
    c = np.einsum("npk,np->nk", vectors, gradient)
    rounded = np.abs(c) <= EPS * (1 + np.abs(loss))[:, None]
    return np.where(rounded & (np.abs(values) <= _floor(values, flat)), 0, c)


def _floor(values: np.ndarray, flat: float) -> np.ndarray:
    """Return the curvature that flat directions are given, `[n, 1]`."""
    return np.maximum(flat * np.abs(values).max(axis=1, keepdims=True), 1e-150)


def _step(values: np.ndarray, c: np.ndarray, radius: np.ndarray, flat: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve trust-region problems in the bases of eigenvectors.

    Args:
        values: `[n, p]` eigenvalues, ascending.
        c: `[n, p]` gradients in the eigenvectors.
        radius: `[n]`.
        flat: See `descend`.

    Returns:
        Steps `[n, p]` in the eigenvectors, and by how much the quadratic models fall, `[n]`.
    """
    floor = _floor(values, flat)
    # near a point with flat directions, symmetries of the network bend them by as much as the gradient is long
    bent = values >= -(EPS**0.5) * np.abs(values).max(axis=1, keepdims=True)
    curved = np.where(bent, np.maximum(np.abs(values), floor), values)
    convex = curved[:, 0] > 0
    gap = curved + np.where(convex, 0, -curved[:, 0])[:, None]  # of H + mu I at the smallest mu, >= 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inside = convex & (np.linalg.norm(c / curved, axis=1) <= radius)
        high = np.maximum(np.linalg.norm(c, axis=1) / radius, 1e-150)
        low = 1e-16 * high
        for _ in range(60):  # bisection of log(mu - smallest mu), to a relative 1e-16
            middle = np.sqrt(low * high)
            long = np.linalg.norm(c / (gap + middle[:, None]), axis=1) > radius
            low, high = np.where(long, middle, low), np.where(long, high, middle)
        step = -c / (gap + np.where(inside, 0, high)[:, None])
    short = ~convex & (np.linalg.norm(step, axis=1) < 0.99 * radius)  # the gradient has no part along the lowest
    rest = np.maximum(radius**2 - np.square(step[:, 1:]).sum(axis=1), 0)
    step[:, 0] = np.where(short, np.where(c[:, 0] > 0, -1, 1) * np.sqrt(rest), step[:, 0])
    predicted = -(c * step + 0.5 * values * step**2).sum(axis=1)
    return step, predicted


def _graph_bytes(objective: Objective, theta: Tensor, batch: object) -> int:
    """Return the bytes that one point keeps to differentiate the loss of a batch."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        objective.batch_loss(theta.detach().clone().requires_grad_(), batch)
    return kept
