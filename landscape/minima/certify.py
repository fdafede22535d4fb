"""Say what a point of parameter space is: a minimum, a saddle and of which index, or no critical point at all."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from landscape.arguments import LARGEST_SEED, expect, real_number, whole_number
from landscape.critical import DENSE_BELOW, Index, index
from landscape.minima.newton import rounding
from landscape.minima.polish import GTOL, Polished, polish_many
from landscape.objective import Objective
from landscape.parameters import real_tensor

KINDS = {
    "minimum": "all eigenvalues of the Hessian are positive",
    "flat minimum": "no eigenvalue is negative, some vanish, and the loss falls along none of the directions tried",
    "saddle": "some eigenvalues are negative",
    "maximum": "all eigenvalues are negative",
    "degenerate saddle": "no eigenvalue is negative, some vanish, and along such a direction the loss falls",
    "undecided": "the smallest eigenvalue was not found, or the loss has a kink here and does not follow its Hessian",
    "not converged": "the gradient does not vanish (at a kink of the loss, as of ReLU, it never does)",
    "at infinity": "no finite minimum: the loss tends to its infimum as the parameters grow",
    "not finite": "loss, gradient or Hessian are not finite",
}
_PROBE = 1e-2  # how far the loss is followed along flat directions, relative to 1 + ||theta||
_PROBES = 16


@dataclass(frozen=True, eq=False)
class Certificate:
    """What a point is, and the evidence.

    Attributes:
        kind: One of `KINDS`.
        loss: The training loss there, in float64.
        gradient_norm: `||g||`.
        gtol: The gradient counts as zero when `||g|| <= gtol (1 + |loss|)`.
        index: The signs of the Hessian's eigenvalues; None if something is not finite.
        descent: `[p]` a unit direction along which the loss falls, at a saddle or maximum; at a saddle in both senses.
    """

    kind: str
    loss: float
    gradient_norm: float
    gtol: float
    index: Index | None
    descent: Tensor | None

    def describe(self) -> str:
        """Say in two lines what the point is and why."""
        evidence = "" if self.index is None else f"; {self.index.describe()}"
        return (
            f"{self.kind}: {KINDS[self.kind]}\n"
            f"loss {self.loss:.9g}, gradient norm {self.gradient_norm:.1e} (zero below "
            f"{self.gtol * (1 + abs(self.loss)):.1e}){evidence}"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What a descent that does not stop at saddles has found.

    Attributes:
        polished: Where it has ended.
        certificate: What that point is.
        saddles: What was left on the way, in order.
    """

    polished: Polished
    certificate: Certificate
    saddles: tuple[Certificate, ...]


def certify(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    gtol: float = GTOL,
    tol: float | None = None,
    dense_below: int = DENSE_BELOW,
    max_products: int = 500,
    seed: int = 0,
) -> Certificate:
    """Decide by the gradient and the signs of the Hessian's eigenvalues what a point is.

    Where eigenvalues vanish, second derivatives cannot decide. Symmetries of the network are one reason (one flat
    direction for every hidden ReLU unit, since its weights can be rescaled), and the point may be a minimum all the
    same; so the loss is followed along flat directions, eigenvectors and random combinations of them, up to 1 % of
    `1 + ||theta||` both ways. If it falls steadily along one, by more than gradient and rounding explain, the point
    is a degenerate saddle, else a flat minimum; that is a probe, not a proof.

    Whether a point is on its way to infinity is a question to `polish`; `find_minima` puts both together.

    Args:
        objective: Loss and data; float64 is used, whatever its own precision.
        theta: `[p]`. Default: the objective's network.
        gtol: The gradient counts as zero when `||g|| <= gtol (1 + |L|)`.
        tol: Below which an eigenvalue counts as zero, see `critical.index`.
        dense_below: Number of parameters below which the whole Hessian is built.
        max_products: Hessian-vector products that Lanczos may use otherwise.
        seed: Of the start of Lanczos and of the random combinations.

    Example:
        >>> print(certify(objective, polish(objective).theta).describe())  # doctest: +SKIP
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    gtol, seed = real_number("gtol", gtol, above=0), whole_number("seed", seed, 0, LARGEST_SEED)
    objective = objective.to(dtype=torch.float64)
    theta = objective.point(objective.origin if theta is None else theta).double()
    loss, gradient = objective.loss_and_gradient(theta)
    norm = float(gradient.norm())
    try:
        found = index(objective, theta, tol=tol, dense_below=dense_below, max_products=max_products, seed=seed)
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return Certificate("not finite", loss, norm, gtol, None, None)
    if not np.isfinite(loss + norm):
        return Certificate("not finite", loss, norm, gtol, None, None)
    kind, descent = "minimum", None
    if not norm <= gtol * (1 + abs(loss)):
        kind = "not converged"
    elif found.n_negative:
        kind, descent = "maximum" if found.n_negative == objective.layout.p else "saddle", found.vectors[0]
        if _lower(objective, theta, loss, descent) is None:  # at a kink there is no second derivative
            kind, descent = "undecided", None
    elif not found.exact and (found.residuals[0] > found.tol or not found.n_flat):
        kind = "undecided"
    elif found.n_flat:
        descent = _falling(objective, theta, loss, norm, found.vectors, seed)
        kind = "flat minimum" if descent is None else "degenerate saddle"
    return Certificate(kind, loss, norm, gtol, found, descent)


def find_minimum(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    max_escapes: int = 10,
    gtol: float = GTOL,
    max_steps: int = 5000,
    method: str | None = None,
    tol: float | None = None,
) -> Found:
    """Polish and certify; leave a saddle along its negative direction and polish again. See `find_minima`."""
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    start = objective.point(objective.origin if theta is None else theta)
    found = find_minima(
        *(objective, start[None]),
        max_escapes=max_escapes,
        gtol=gtol,
        max_steps=max_steps,
        method=method,
        tol=tol,
        progress=False,
    )
    return found[0]


def find_minima(
    objective: Objective,
    thetas: Tensor,
    *,
    max_escapes: int = 10,
    gtol: float = GTOL,
    max_steps: int = 5000,
    method: str | None = None,
    tol: float | None = None,
    progress: bool = True,
) -> list[Found]:
    """Descend from many points to certified minima.

    Each is polished and certified. From a saddle, a line search along the lowest eigenvector, in both senses, goes to
    the lower loss, and the point is polished again.

    Args:
        objective: Loss and data; float64 is used, whatever its own precision.
        thetas: `[n, p]` where to start.
        max_escapes: How many saddles to leave at most; a saddle beyond stays as what was found.
        gtol: Relative gradient norm to reach, see `polish`.
        max_steps: Steps of each descent at most.
        method: See `polish`.
        tol: Below which an eigenvalue counts as zero, see `critical.index`.
        progress: Show progress bars.

    Returns:
        One result for each, in their order.

    Raises:
        ValueError: An option is out of range, or the points have another shape.
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    max_escapes = whole_number("max_escapes", max_escapes, 0)
    if real_tensor("thetas", thetas).ndim != 2 or thetas.shape[1] != objective.layout.p:
        raise ValueError(f"thetas need shape [n, {objective.layout.p}], got {tuple(thetas.shape)}")
    objective = objective.to(dtype=torch.float64)
    points = thetas.detach().to(objective.device, torch.float64, copy=True)
    found: list[Found | None] = [None] * len(points)
    saddles: list[tuple[Certificate, ...]] = [()] * len(points)
    todo = list(range(len(points)))
    for n_escaped in range(max_escapes + 1):
        polished = polish_many(
            objective, points[todo], gtol=gtol, max_steps=max_steps, method=method, progress=progress
        )
        on = []
        for i, end in zip(todo, tqdm(polished, desc="certify", unit="network", disable=not progress), strict=True):
            certificate = certify(objective, end.theta, gtol=gtol, tol=tol)
            if end.status == "at infinity" and certificate.kind != "not finite":
                certificate = replace(certificate, kind="at infinity", descent=None)
            found[i] = Found(end, certificate, saddles[i])
            if certificate.descent is None or n_escaped == max_escapes:
                continue
            lower = _lower(objective, end.theta, certificate.loss, certificate.descent)
            if lower is not None:
                points[i], saddles[i] = lower, (*saddles[i], certificate)
                on.append(i)
        todo = on
        if not todo:
            break
    return [one for one in found if one is not None]


def _lower(objective: Objective, theta: Tensor, loss: float, descent: Tensor) -> Tensor | None:
    """Search for a lower point along a direction, in both senses; return the lowest, `[p]`, None if there is none."""
    best, lowest = None, loss - float(rounding(loss))
    for direction in (descent, -descent):
        t = _PROBE * (1 + float(theta.norm()))
        for _ in range(30):  # shorter, until the loss falls
            falling = _loss(objective, theta + t * direction)
            if falling < loss:
                break
            t /= 2
        for _ in range(30):  # longer, while it goes on falling
            further = _loss(objective, theta + 2 * t * direction)
            if not further < falling:
                break
            t, falling = 2 * t, further
        if falling < lowest:
            best, lowest = theta + t * direction, falling
    return best


def _falling(
    objective: Objective, theta: Tensor, loss: float, gradient_norm: float, vectors: Tensor, seed: int
) -> Tensor | None:
    """Return a combination of flat directions along which the loss falls steadily, `[p]`; None if none was found."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(_PROBES, len(vectors), generator=generator, dtype=torch.float64).to(vectors) @ vectors
    t = _PROBE * (1 + float(theta.norm()))
    threshold = 2 * gradient_norm * t + float(rounding(loss))
    for direction in [*vectors[:_PROBES], *(mixed / mixed.norm(dim=1, keepdim=True))]:
        for sense in (direction, -direction):
            if not _loss(objective, theta + t * sense) < loss - threshold:
                continue
            quarter, half = (_loss(objective, theta + t * f * sense) for f in (0.25, 0.5))
            if loss + threshold > quarter > half > _loss(objective, theta + t * sense):
                return sense
    return None


def _loss(objective: Objective, theta: Tensor) -> float:
    return objective.loss_and_gradient(theta)[0]
