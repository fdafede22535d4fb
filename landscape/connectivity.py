"""Straight paths between networks and their barriers, before and after alignment of their hidden units."""

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from landscape.arguments import expect, whole_number
from landscape.barriers import Barriers, PathProfile
from landscape.evaluation import Plan, make_plan
from landscape.objective import Objective
from landscape.parameters import real_tensor
from landscape.slice import Slice
from landscape.symmetry import Symmetries, align


def barrier(
    objective: Objective, theta_a: Tensor, theta_b: Tensor, n: int = 25, symmetries: Symmetries | None = None
) -> PathProfile:
    """Evaluate the straight path between two networks.

        path(t) = (1 - t) theta_a + t theta_b

    A barrier of zero (linear mode connectivity, Frankle et al. 2020, arXiv:1912.05671) says that both lie in one
    valley. That of two runs is often due to the order of their hidden units alone: compare with and without alignment.

    Args:
        objective: The loss. With batch norm its policy has to be `"recalibrated"` or `"batch"`: between two networks
            neither's running statistics fit (Jordan et al. 2022, arXiv:2211.08403).
        theta_a: `[p]` the first network.
        theta_b: `[p]` the second network.
        n: Points on the path, both ends among them; the barrier is the largest value at these points.
        symmetries: Take the symmetric copy of the second network that is nearest to the first (`symmetry.align`).

    Raises:
        ValueError: Wrong shapes, fewer than 3 points, or a batch-norm policy that does not fit.

    Example:
        >>> barrier(objective, theta_a, theta_b).barrier  # doctest: +SKIP
        0.83
    """
    _check(objective, n)
    return _profile(objective, *_pair(objective, theta_a, theta_b, symmetries), n, None)[0]


def barrier_matrix(
    objective: Objective,
    thetas: Tensor,
    symmetries: Symmetries | None = None,
    *,
    n_points: int = 25,
    progress: bool = True,
) -> Barriers:
    """Evaluate the straight paths between all pairs of networks.

    Args:
        objective: The loss, see `barrier`.
        thetas: `[n, p]`.
        symmetries: Align the second network of each pair to the first.
        n_points: Points on each path.
        progress: Show a progress bar.

    Raises:
        ValueError: As for `barrier`.
    """
    _check(objective, n_points)
    if real_tensor("thetas", thetas).ndim != 2 or thetas.shape[1] != objective.layout.p or not len(thetas):
        raise ValueError(f"thetas need shape [n, {objective.layout.p}], got {tuple(thetas.shape)}")
    n = len(thetas)
    profiles, distances = np.empty((n, n, n_points)), np.zeros((n, n))
    for i, theta in enumerate(thetas):
        profiles[i, i] = objective.evaluate(theta.to(objective.origin))["loss"]
    plan: Plan | None = None
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    for i, j in tqdm(pairs, desc=f"paths between {n} networks", unit="path", disable=not progress):
        a, b = _pair(objective, thetas[i], thetas[j], symmetries)
        path, plan = _profile(objective, a, b, n_points, plan)
        profiles[i, j] = path.values["loss"]
        profiles[j, i] = profiles[i, j][::-1]
        distances[i, j] = distances[j, i] = path.distance
    return Barriers(np.linspace(0, 1, n_points), profiles, distances, symmetries is not None)


def _check(objective: Objective, n: int) -> None:
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    if whole_number("the number of points", n, 1) < 3:
        raise ValueError(f"a path needs at least 3 points, both ends and one between, got {n}")
    if objective.has_batch_norm and objective.batch_norm not in ("recalibrated", "batch"):
        raise ValueError(
            f"the batch-norm policy is {objective.batch_norm!r}, but the running statistics of one network do not fit "
            "another one: make the objective with batch_norm='recalibrated'"
        )


def _pair(objective: Objective, a: Tensor, b: Tensor, symmetries: Symmetries | None) -> tuple[Tensor, Tensor]:
    a, b = objective.point(a), objective.point(b)
    if symmetries is not None:
        expect("symmetries", symmetries, Symmetries, "what landscape.symmetries returns")
        if symmetries.layout != objective.layout:
            raise ValueError("the symmetries are those of other parameters than the objective's")
        b = align(symmetries, a.cpu(), b.cpu())
    return a.to(objective.origin), b.to(objective.origin)


def _profile(objective: Objective, a: Tensor, b: Tensor, n: int, first: Plan | None) -> tuple[PathProfile, Plan | None]:
    """Evaluate a path, with what was tuned for the first of several; returns that plan, too."""
    t = np.linspace(0, 1, n)
    distance = float((b.double() - a.double()).norm())
    if distance == 0:
        point = objective.evaluate(a)
        return PathProfile(t, {name: np.full(n, value) for name, value in point.items()}, 0.0), first
    line = Slice(a, (b - a)[None], {"kind": "between", "labels": ["from one network to the other"]}, ((0.0, 1.0),))
    plan = make_plan(objective, line, stored=None if first is None else first.stored())
    parts = [plan.values(t[i : i + plan.group, None]) for i in range(0, n, plan.group)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PathProfile(t, joined, distance), first or plan


__all__ = ["Barriers", "PathProfile", "barrier", "barrier_matrix"]
