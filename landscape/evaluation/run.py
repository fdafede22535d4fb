"""Evaluate a surface, point by point from coarse to fine, into a store that survives a kill."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from tqdm.auto import tqdm

from landscape.arguments import expect, file_path, real_number
from landscape.evaluation.grid import coarse_to_fine
from landscape.evaluation.plan import RTOL, Plan
from landscape.evaluation.question import axes_of, check_same_values, fingerprint_of, provenance_of
from landscape.evaluation.spread import Job, divide_processors, plan_for, work_maker
from landscape.lock import Lock
from landscape.objective import Objective
from landscape.slice import Slice
from landscape.surface import (
    ProjectedTrajectory,
    Surface,
    SurfaceStore,
    empty_surface,
)
from landscape.trajectory import Trajectory
from landscape.workers import Make, ThisProcess, Workers, open_workers

log = logging.getLogger(__name__)

_MAX_PROJECTED = 200  # checkpoints of a trajectory whose losses are evaluated


def evaluate(
    objective: Objective,
    slice: Slice,
    *,
    resolution: int | Sequence[int] | None = None,
    extent: Sequence[tuple[float, float]] | tuple[float, float] | None = None,
    axes: Sequence[np.ndarray] | None = None,
    trajectories: Mapping[str, Trajectory] | None = None,
    path: str | os.PathLike | None = None,
    progress: bool = True,
    interval: float = 2.0,
    checkpoint: Mapping[str, object] | None = None,
    engine: str = "auto",
    memory: int | None = None,
    workers: int | str | Sequence[str] | Workers = 1,
) -> Surface:
    """Evaluate loss and metrics on a grid of a slice.

    The fastest plan that agrees with the reference on the real data is used (see `make_plan`); one point per row is
    evaluated again by the reference while the grid fills, and if it ever differs the reference does it all.

    A path that already holds a part of the same surface is continued; another surface there is refused.

    Args:
        objective: The loss and its data.
        slice: Origin and directions.
        resolution: Points along each axis, one number or one per axis. Default: 101, 51 x 51, 21 x 21 x 21.
        extent: Range (low, high) of the coordinates, one for all axes or one per axis. Default: the slice's own.
        axes: The coordinates themselves, one array per direction, instead of resolution and extent.
        trajectories: Training runs to project on the slice, by name, with their own losses and those on the slice; of
            a long one, 200 checkpoints spread evenly.
        path: HDF5 file to keep the surface in while it is computed and afterwards.
        progress: Show a progress bar with the time left.
        interval: Seconds between two writes of the values.
        checkpoint: What is known of the network (path, its loss, ...), kept with the surface.
        engine: `"auto"`, `"reference"` for the plan that serves every module, or `"preview"` for a quick look in bf16.
        memory: Bytes that the plan may take. Default: see `make_plan`.
        workers: How many processes share the work; or the device of each, such as `["cuda:0", "cuda:1"]`; or `"cuda"`
            for all GPUs of the machine; or a `LocalWorkers` or `ClusterWorkers` that is kept for more than one surface.

    Returns:
        The surface, with its provenance and the numbers of the sanity report.

    Raises:
        ValueError: Axes, resolution or extent do not fit the slice, or the file holds another surface.
        BlockingIOError: Another process is writing the file.

    Example:
        >>> surface = evaluate(objective, plane, resolution=(51, 41), path="plane.h5")  # doctest: +SKIP
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    expect("slice", slice, Slice, "a Slice, as the functions of directions return it")
    interval = real_number("interval", interval, 0)
    path = None if path is None else file_path(path)
    if trajectories is not None:
        expect("trajectories", trajectories, Mapping, "training runs by name")
    if objective.batch_norm == "interpolated" and objective.buffers and not slice.buffer_directions:
        raise ValueError(
            f"batch_norm='interpolated' needs the statistics of several networks, a slice of kind "
            f"{slice.info['kind']!r} has none: use directions_between, or another policy"
        )
    for name, trajectory in (trajectories or {}).items():  # now, not after hours
        if not isinstance(name, str) or not name.strip(".") or "/" in name:  # HDF5 would take it for a path
            raise ValueError(f"trajectory name {name!r} cannot be stored: use a text without '/'")
        expect(f"trajectory {name!r}", trajectory, Trajectory, "a Trajectory (Trajectory.load reads its file)")
        _check_layout(objective, trajectory)
    surface = empty_surface(axes_of(slice, resolution, extent, axes), objective.metric_names)
    surface.origin = slice.origin.cpu().numpy()
    surface.directions = slice.directions.cpu().numpy()
    fresh = surface.provenance = provenance_of(objective, slice, checkpoint)
    fingerprint = fingerprint_of(objective, slice, surface)
    ranges = np.array([(axis[0], axis[-1]) for axis in surface.axes.values()])
    with ExitStack() as stack:
        if path is not None:  # before it is looked at, and before minutes of planning
            stack.callback(Lock(path).release)
        team = open_workers(workers, stack)
        job = Job(objective, slice, engine, ranges, memory, surface.done.size)
        if path is None or not os.path.exists(path):
            plan = plan_for(job, team)
            fresh["plan"] = plan.stored()
            fresh["machine"]["workers"] = len(team.devices)
            store = SurfaceStore(surface, fingerprint, path, interval)
            stack.callback(store.close)
        else:
            store = SurfaceStore(surface, fingerprint, path, interval)
            stack.callback(store.close)
            check_same_values(surface, fresh)
            # what goes on must not change the plan, or the last digits would depend on when it was interrupted
            begun = surface.provenance["plan"]
            plan = plan_for(job, team, begun)
            if plan.name != begun["name"]:
                log.warning("begun with the %s plan, continued with the %s plan", begun["name"], plan.name)
                surface.provenance["plan"] = plan.stored()
                surface.provenance["plan"]["notes"].append(f"begun with the {begun['name']} plan")
        log.info("%s", plan.describe())
        make = work_maker(job, plan, team)
        if isinstance(team, ThisProcess):
            team, make = divide_processors(job, plan, stack)
            surface.provenance["machine"]["groups at a time"] = len(team.devices)

        start = time.perf_counter()
        before = surface.provenance["seconds"]
        try:
            if not _fill(store, plan, team, make, progress):
                plan = plan_for(replace(job, engine="reference"), team)
                make = work_maker(job, plan, team)
                surface.provenance["plan"] = plan.stored()
                store.forget_progress()  # first: a kill in between must not leave the wrong values beside the new plan
                store.save()  # the file must not name the plan that went wrong while the new values come in
                _fill(store, plan, team, make, progress)
            for name, trajectory in (trajectories or {}).items():
                if name not in surface.trajectories:
                    surface.trajectories[name] = project_trajectory(objective, slice, trajectory, plan, progress)
        finally:
            surface.provenance["seconds"] = before + time.perf_counter() - start
            store.finish()
    return surface


def _fill(store: SurfaceStore, plan: Plan, team: Workers, make: Make, progress: bool) -> bool:
    """Evaluate what is not done, coarse to fine; False if a point turned out to differ from the reference.

    Points are handed over in groups that are always cut alike, so that a surface continued, or computed by several
    workers, has the digits of one that was never interrupted.
    """
    surface = store.surface
    order = coarse_to_fine(surface.shape)
    coordinates = np.stack([axis[order[:, i]] for i, axis in enumerate(surface.axes.values())], axis=1)
    row = surface.shape[-1]
    n_filled, next_check = 0, row
    groups, tasks = [], []
    for first in range(0, len(order), plan.group):
        group = [tuple(index) for index in order[first : first + plan.group]]
        missing = [j for j, index in enumerate(group) if not surface.done[index]]
        if missing:
            n_filled += len(missing)
            due = plan.rechecked and n_filled >= next_check
            next_check += row if due else 0
            groups.append({j: group[j] for j in missing})
            tasks.append((coordinates[first : first + plan.group], due))
    with tqdm(
        total=surface.done.size,
        initial=int(surface.done.sum()),
        desc=f"surface {' x '.join(map(str, surface.shape))}",
        unit="point",
        disable=not progress,
    ) as bar:
        for i, (values, difference) in team.run(make, tasks):
            for j, index in groups[i].items():
                store.record(index, {name: array[j] for name, array in values.items()})
            bar.update(len(groups[i]))
            if plan.rechecked and not difference <= RTOL:
                log.warning(
                    "at %s the plan differs from the reference by %.1e: doing it all anew", tasks[i][0][-1], difference
                )
                surface.done[:] = False
                return False
    return True


def project_trajectory(
    objective: Objective, slice: Slice, trajectory: Trajectory, plan: Plan, progress: bool = True
) -> ProjectedTrajectory:
    """Project the checkpoints of a run on a slice, and compare their losses with those on the slice.

    Args:
        objective: The loss; a checkpoint is evaluated with its own batch-norm statistics where it has them.
        slice: Where to project.
        trajectory: The run.
        plan: How points of the slice are evaluated.
        progress: Show a progress bar.
    """
    _check_layout(objective, trajectory)
    chosen = np.unique(np.linspace(0, len(trajectory) - 1, min(len(trajectory), _MAX_PROJECTED)).round().astype(int))
    coordinates, distance = (array[chosen] for array in slice.project(trajectory))
    losses, on_slice = [], []
    for t, c in tqdm(list(zip(chosen, coordinates, strict=True)), desc="trajectory", disable=not progress):
        losses.append(objective.evaluate(trajectory.theta(int(t)), trajectory.buffers(int(t)))["loss"])
        on_slice.append(plan.values(c[None])["loss"][0])
    return ProjectedTrajectory(trajectory.step[chosen], coordinates, distance, np.array(losses), np.array(on_slice))


def _check_layout(objective: Objective, trajectory: Trajectory) -> None:
    if trajectory.layout != objective.layout:
        raise ValueError(
            f"trajectory {trajectory.path} has other parameters than the model ({trajectory.p} and "
            f"{objective.layout.p} entries): same network, and the same `select` as when it was recorded?"
        )
