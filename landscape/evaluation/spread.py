"""The same points, the same plan, by one process or by many: what workers are sent and what they do with it."""

import logging
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from landscape.evaluation.memory import memory_budget
from landscape.evaluation.plan import Plan, Values, make_plan, relative_difference
from landscape.evaluation.reference import reference_values
from landscape.objective import Objective
from landscape.slice import Slice
from landscape.workers import LocalThreads, Make, ThisProcess, Workers, torch_threads

log = logging.getLogger(__name__)

_WORTH = 10.0  # seconds that the whole grid takes, from which on another division of the processors is tried
_MOST = 8  # threads that share them; more would get into each other's way in Python
_GAIN = 0.97


@dataclass(frozen=True)
class Job:
    """What plans are made of, see `make_plan`."""

    objective: Objective
    slice: Slice
    engine: str
    ranges: np.ndarray
    memory: int | None
    n_points: int

    def plan(self, stored: dict | None = None) -> Plan:
        """Make a plan, a stored one again."""
        return make_plan(
            self.objective,
            self.slice,
            engine=self.engine,
            ranges=self.ranges,
            memory=self.memory,
            stored=stored,
            n_points=self.n_points,
        )

    def on(self, device: str | None, share: int) -> "Job":
        """Return the job, with a network of its own, for one of so many workers that share the machine's memory."""
        objective = self.objective.to(device, copy=True)
        memory = memory_budget(self.memory, objective.device) // (share if device is None else 1)
        return replace(self, objective=objective, slice=self.slice.to(device), memory=memory)


def plan_for(job: Job, team: Workers, stored: dict | None = None) -> Plan:
    """Choose the plan that all workers use: here where they are processors like this one, else on one of them."""
    share = len(team.devices)
    if team.devices[0] is None:
        with torch_threads(team.threads):  # tuned under their conditions
            return job.on(None, share).plan(stored)
    ((_, found),) = team.run(partial(_planner, job, share), [stored])
    name, notes, settings = found

    def values(coordinates: np.ndarray) -> dict[str, np.ndarray]:  # on a worker, too
        ((_, (found, _)),) = team.run(partial(_again, job, plan.stored(), share), [(coordinates, False)])
        return found

    plan = Plan(name, notes, settings, values)
    return plan


def work_maker(job: Job, plan: Plan, team: Workers) -> Make:
    """Return what makes, on each worker, the function that evaluates a group of points, see `_work`."""
    if isinstance(team, ThisProcess):
        return lambda device: partial(_work, plan.values, _reference(job) if plan.rechecked else None)
    return partial(_again, job, plan.stored(), len(team.devices))


def divide_processors(job: Job, plan: Plan, stack: ExitStack) -> tuple[Workers, Make]:
    """Choose between all processors for one group of points and a share of them for each of several groups.

    Both are timed where the grid takes long enough. The values are the same: where the last digits depend on the number
    of threads, as those of small products do on some processors, all work on one group.
    """
    here = ThisProcess()
    alone, n = work_maker(job, plan, here), min(torch.get_num_threads(), _MOST)
    has_threads = plan.settings.get("kernel") is not None and plan.name == "dense"
    if n < 2 or job.objective.device.type != "cpu" or has_threads:
        return here, alone
    low, high = job.ranges.T
    points = np.random.default_rng(0).uniform(low, high, (plan.group, len(low)))
    start = time.perf_counter()
    together = plan.values(points)
    seconds = time.perf_counter() - start
    if seconds / plan.group * job.n_points < _WORTH:
        return here, alone
    apart = partial(_again, job, plan.stored(), n + 1)
    with ExitStack() as trial:  # what is not used shall not keep its memory
        team = trial.enter_context(LocalThreads(n))
        try:
            (_, (found, _)), *_ = list(team.run(apart, [(points, False)] * n))
        except (RuntimeError, ValueError, MemoryError) as error:  # a share of the memory may be too little
            log.info("all processors work on one group of points at a time: %s", error)
            return here, alone
        if not all(np.array_equal(found[name], values, equal_nan=True) for name, values in together.items()):
            log.info("all processors work on one group of points at a time: a share of them gives other last digits")
            return here, alone
        start = time.perf_counter()
        list(team.run(apart, [(points, False)] * 2 * n))
        if (time.perf_counter() - start) / (2 * n) > _GAIN * seconds:
            return here, alone
        stack.push(trial.pop_all())
    log.info("%d groups of points at a time, each by a share of the processors, which is faster here", n)
    return team, apart


def _work(
    values: Values, reference: Values | None, task: tuple[np.ndarray, bool]
) -> tuple[dict[str, np.ndarray], float]:
    """Evaluate coordinates `[m, k]`; if told to, compare the last point with the reference (relative difference)."""
    coordinates, compare = task
    found = values(coordinates)
    if reference is None or not compare:
        return found, 0.0
    last = {name: array[-1:] for name, array in found.items()}
    return found, relative_difference(last, reference(coordinates[-1:]))


def _again(job: Job, stored: dict, share: int, device: str | None) -> Callable[[Any], Any]:
    """Make a plan again, on a worker."""
    job = job.on(device, share)
    plan = job.plan(stored)
    if plan.name != stored["name"]:
        raise RuntimeError(
            f"a worker on {platform.node()} cannot use the {stored['name']} plan ({'; '.join(plan.notes)}): install "
            "the same versions on all machines, or use engine='reference'"
        )
    return partial(_work, plan.values, _reference(job) if plan.rechecked else None)


def _planner(job: Job, share: int, device: str | None) -> Callable[[Any], Any]:
    """Make a plan on a worker, to be described elsewhere."""

    def choose(stored: dict | None) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        plan = job.on(device, share).plan(stored)
        return plan.name, plan.notes, plan.settings

    return choose


def _reference(job: Job) -> Values:
    return reference_values(job.objective, job.slice, job.objective.chunk_size)
