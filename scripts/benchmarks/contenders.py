"""Ours and the peers, behind one interface: the loss of a network at points of a plane, all with the same batches.

- landscape: an objective and the plan that is chosen by itself; matching, tuning and checking it are timed apart.
- functional_call: the plain loop, `torch.func.functional_call` at one point after the other.
- loss-landscapes (PyPI): `planar_interpolation` with our directions. Its own metric takes the whole data as one tensor,
  which is up to 2.5 times slower; it gets a metric over batches instead. It walks through the plane, adding and
  subtracting steps in place, and shifts every second column by a cell; its error is taken where it really is.
- losscape (PyPI): `_set_weights` and `compute_loss`, the two calls of its loop over the grid, which also prints and
  plots. It averages over batches, right only where they are of one size, as they are here.
- landscaper (PyPI): `compute_loss_landscape` with our directions, which it scales, and the loss over batches. It walks
  to each point from the center, and adds noise to the highest value; its error is taken before that.

Left out: loss-landscape-anim (PyPI) needs torchvision < 0.17 and NumPy < 2, so it cannot be installed beside a current
PyTorch; Li et al.'s own code is not on PyPI.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from harness import best_of, silent
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscape.data import Dataset
from landscape.evaluation import Plan
from landscape.evaluation.spread import Job, plan_for, work_maker
from landscape.objective import Objective
from landscape.parameters import layout
from landscape.slice import Slice
from landscape.workers import LocalWorkers, Make, ThisProcess, Workers

FAR = (0.7, -0.6)  # coordinates of the point far from the center


@dataclass(frozen=True)
class Problem:
    """What all contenders get.

    Attributes:
        model: The network, in evaluation mode.
        data: The samples.
        directions: `[2, p]` of the plane.
        batch: Samples per forward pass; it divides their number.
        n_points: Points at once, where they go together.
    """

    model: nn.Module
    data: Dataset
    directions: Tensor
    batch: int
    n_points: int

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the data cut into batches."""
        return list(zip(self.data.inputs.split(self.batch), self.data.targets.split(self.batch), strict=True))

    def mean_loss(self, network: Callable[[Tensor], Tensor]) -> float:
        """Return the mean loss over all batches."""
        with torch.no_grad():
            total = sum(F.cross_entropy(network(x), y, reduction="sum").item() for x, y in self.batches())
        return total / len(self.data)

    def theta(self, coordinates: tuple[float, float]) -> Tensor:
        """Return a point of the plane, `[p]` float64."""
        origin = layout(self.model).flatten(dict(self.model.named_parameters())).double()
        return origin + torch.tensor(coordinates, dtype=torch.float64) @ self.directions.double()

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector `[p]` cut into tensors by name."""
        return layout(self.model).unflatten(vector)


@dataclass(frozen=True)
class Contender:
    """A way to evaluate points.

    Attributes:
        run: Evaluates some points and returns the seconds per point.
        check: Returns the losses that it finds at the center and far from it, each with the point `[p]`, float64.
    """

    run: Callable[[], float]
    check: Callable[[], list[tuple[Tensor, float]]]


def best_batch(model: nn.Module, data: Dataset) -> int:
    """Return the fastest batch size for a plain pass over the data, of those that divide their number."""
    n = len(data)
    sizes = [n // parts for parts in (1, 2, 4, 5, 10, 20, 25, 50, 100, 200, 400) if n % parts == 0 and n // parts >= 50]
    seconds = {}
    for size in sizes:
        problem = Problem(model, data, torch.empty(0), size, 1)
        seconds[size] = best_of(2, lambda problem=problem: problem.mean_loss(model))
    return min(seconds, key=seconds.__getitem__)


def job_of(problem: Problem) -> Job:
    """Return what a plan is made of, as `evaluate` does."""
    objective = Objective(problem.model, problem.data, metrics={})
    plane = Slice(objective.origin, problem.directions, {"kind": "given"}, ((-1.0, 1.0), (-1.0, 1.0)))
    return Job(objective, plane, "auto", np.array(plane.extent), None, 51 * 51)


def landscape(problem: Problem) -> Contender:
    """Ours, one group of points after another."""
    job, team = job_of(problem), ThisProcess()
    plan = plan_for(job, team)
    return ours(problem, plan, team, work_maker(job, plan, team))


def ours(problem: Problem, plan: Plan, team: Workers, make: Make) -> Contender:
    """Ours, by workers: seconds per point once each has delivered its first group."""
    n_workers = len(team.devices)
    n_groups = n_workers * (1 + max(1, -(-problem.n_points // plan.group // n_workers)))
    points = np.random.default_rng(0).uniform(-1, 1, (n_groups, plan.group, 2))

    def run() -> float:
        ready = [time.perf_counter() for _ in team.run(make, [(group, False) for group in points])]
        return (ready[-1] - ready[n_workers - 1]) / (n_groups - n_workers) / plan.group

    def check() -> list[tuple[Tensor, float]]:
        groups = [(np.array([c]), False) for c in ((0.0, 0.0), FAR)]
        found = dict(team.run(make, groups))
        return [(problem.theta(tuple(group[0][0])), found[i][0]["loss"][0]) for i, group in enumerate(groups)]

    return Contender(run, check)


def plain_loop(problem: Problem) -> Contender:
    """The plain loop, `functional_call` at one point after the other."""
    origin = {name: tensor.detach() for name, tensor in problem.model.named_parameters()}
    one, two = (problem.named(direction) for direction in problem.directions)

    def loss(a: float, b: float) -> float:
        tensors = {name: origin[name] + a * one[name] + b * two[name] for name in origin}
        return problem.mean_loss(lambda x: functional_call(problem.model, tensors, (x,)))

    n = max(2, problem.n_points // 8)
    points = np.random.default_rng(0).uniform(-1, 1, (n, 2)).tolist()
    return Contender(
        _timed(lambda: [loss(*c) for c in points], n),
        lambda: [(problem.theta(c), loss(*c)) for c in ((0.0, 0.0), FAR)],
    )


def loss_landscapes(problem: Problem) -> Contender:
    """The package of that name: a 2 x 2 grid, whose last cell is half of the way to the end of both directions."""
    from loss_landscapes import planar_interpolation, point
    from loss_landscapes.metrics import Metric

    class MeanLoss(Metric):
        def __call__(self, model_wrapper: Callable) -> float:
            return problem.mean_loss(model_wrapper.forward)

    ends = []
    for direction, coordinate in zip(problem.directions, FAR, strict=True):
        end = copy.deepcopy(problem.model)
        with torch.no_grad():
            for name, step in problem.named(direction).items():
                end.get_parameter(name).add_(2 * coordinate * step)
        ends.append(end)

    def plane() -> np.ndarray:
        return planar_interpolation(problem.model, *ends, MeanLoss(), steps=2, deepcopy_model=True)

    return Contender(
        _timed(plane, 4),
        lambda: [
            (problem.theta((0.0, 0.0)), point(copy.deepcopy(problem.model), MeanLoss())),
            (problem.theta(FAR), plane()[1, 1]),
        ],
    )


def losscape(problem: Problem) -> Contender:
    """The package of that name, with batches in memory."""
    from losscape.compute_loss import compute_loss
    from losscape.create_landscape import _set_weights

    model = copy.deepcopy(problem.model)
    weights = [parameter.data for parameter in model.parameters()]
    directions = [list(problem.named(direction).values()) for direction in problem.directions]
    batches = problem.batches()

    def loss(a: float, b: float) -> float:
        _set_weights(model, weights, directions, np.array([a, b], dtype=np.float32))
        return compute_loss(model, batches, None, F.cross_entropy, len(batches))

    n = max(2, problem.n_points // 8)
    points = np.random.default_rng(0).uniform(-1, 1, (n, 2)).tolist()
    return Contender(
        _timed(lambda: [loss(*c) for c in points], n),
        lambda: [(problem.theta(c), loss(*c)) for c in ((0.0, 0.0), FAR)],
    )


def landscaper(problem: Problem) -> Contender:
    """The package of that name: a 2 x 2 grid, whose last cell is the center."""
    from landscaper import compute

    model = copy.deepcopy(problem.model)
    distance = abs(FAR[0])

    def directions() -> list[list[Tensor]]:
        return [[part.clone() for part in problem.named(d).values()] for d in problem.directions]

    def plane() -> list[float]:
        found = []

        def loss(network: nn.Module, _: object) -> float:
            found.append(problem.mean_loss(network))
            return found[-1]

        with silent():
            compute.compute_loss_landscape(
                model, None, directions(), loss, steps=2, distance=distance, dim=2, device="cpu"
            )
        return found

    def check() -> Iterator[tuple[Tensor, float]]:
        losses, origin = plane(), [parameter.detach() for parameter in model.parameters()]
        theta = problem.theta((0.0, 0.0))
        far = theta.clone()
        for direction in directions():  # scaled as it does
            compute.normalize_direction(direction, origin)
            ratio = compute.get_model_norm(origin) * distance / compute.get_model_norm(direction)
            compute.scale_direction(direction, ratio)
            far -= torch.cat([part.flatten() for part in direction]).double()
        return [(theta, losses[3]), (far, losses[0])]

    return Contender(_timed(plane, 4), check)


OWN = "landscape"
CONTENDERS: dict[str, Callable[[Problem], Contender]] = {
    OWN: landscape,
    "functional_call": plain_loop,
    "loss-landscapes": loss_landscapes,
    "losscape": losscape,
    "landscaper": landscaper,
}
MODULES = {"loss-landscapes": "loss_landscapes", "losscape": "losscape", "landscaper": "landscaper"}
MISSING = [name for name, module in MODULES.items() if find_spec(module) is None]


def _timed(work: Callable[[], object], n: int) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / n

    return run


@contextmanager
def two_processes(problem: Problem) -> Iterator[Contender]:
    """Ours in two processes that share the threads."""
    job = job_of(problem)
    with LocalWorkers(2) as team:
        plan = plan_for(job, team)
        yield ours(problem, plan, team, work_maker(job, plan, team))
