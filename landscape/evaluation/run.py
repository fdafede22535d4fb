"""Evaluate a surface, point by point from coarse to fine, into a store that survives a kill."""

import hashlib
import logging
import operator
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import torch
from tqdm.auto import tqdm

import landscape
from landscape.evaluation.grid import coarse_to_fine, grid_axis
from landscape.evaluation.plan import RTOL, Plan, make_plan, relative_difference
from landscape.evaluation.reference import reference_values
from landscape.objective import Objective
from landscape.slice import Slice
from landscape.surface import (
    AXIS_NAMES,
    ProjectedTrajectory,
    Surface,
    SurfaceStore,
    empty_surface,
    hash_array,
)
from landscape.trajectory import Trajectory

log = logging.getLogger(__name__)

RESOLUTION = {1: 101, 2: 51, 3: 21}
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
        engine: `"auto"`, or `"reference"` for the plan that serves every module.

    Returns:
        The surface, with its provenance and the numbers of the sanity report.

    Raises:
        ValueError: Axes, resolution or extent do not fit the slice, or the file holds another surface.

    Example:
        >>> surface = evaluate(objective, plane, resolution=(51, 41), path="plane.h5")  # doctest: +SKIP
    """
    if objective.batch_norm == "interpolated" and objective.buffers and not slice.buffer_directions:
        raise ValueError(
            f"batch_norm='interpolated' needs the statistics of several networks, a slice of kind "
            f"{slice.info['kind']!r} has none: use directions_between, or another policy"
        )
    for name, trajectory in (trajectories or {}).items():  # now, not after hours
        if not name.strip(".") or "/" in name:  # HDF5 would take it for a path
            raise ValueError(f"trajectory name {name!r} cannot be stored: use a text without '/'")
        _check_layout(objective, trajectory)
    surface = empty_surface(_axes(slice, resolution, extent, axes), objective.metric_names)
    surface.origin = slice.origin.cpu().numpy()
    surface.directions = slice.directions.cpu().numpy()
    fresh = surface.provenance = _provenance(objective, slice, checkpoint)
    fingerprint = _fingerprint(objective, slice, surface)
    ranges = np.array([(axis[0], axis[-1]) for axis in surface.axes.values()])
    if path is None or not os.path.exists(path):
        plan = make_plan(objective, slice, engine=engine, ranges=ranges)
        fresh["plan"] = plan.stored()
        store = SurfaceStore(surface, fingerprint, path, interval)
    else:
        store = SurfaceStore(surface, fingerprint, path, interval)
        _check_same_values(surface, fresh)
        # what goes on must not change the plan, or the last digits would depend on when it was interrupted
        plan = make_plan(objective, slice, engine=engine, ranges=ranges, stored=surface.provenance["plan"])
    log.info("%s", plan.describe())

    start = time.perf_counter()
    before = surface.provenance["seconds"]
    try:
        if not _fill(store, plan, objective, slice, progress):
            plan = make_plan(objective, slice, engine="reference")
            surface.provenance["plan"] = plan.stored()
            _fill(store, plan, objective, slice, progress)
        for name, trajectory in (trajectories or {}).items():
            if name not in surface.trajectories:
                surface.trajectories[name] = project_trajectory(objective, slice, trajectory, plan, progress)
    finally:
        surface.provenance["seconds"] = before + time.perf_counter() - start
        store.finish()
    return surface


def _fill(store: SurfaceStore, plan: Plan, objective: Objective, slice: Slice, progress: bool) -> bool:
    """Evaluate what is not done, coarse to fine; False if a point turned out to differ from the reference.

    Points are handed over in groups that are always cut alike, so that a surface continued has the digits of one that
    was never interrupted.
    """
    surface = store.surface
    order = coarse_to_fine(surface.shape)
    coordinates = np.stack([axis[order[:, i]] for i, axis in enumerate(surface.axes.values())], axis=1)
    reference = reference_values(objective, slice, objective.chunk_size) if plan.name != "reference" else None
    row, next_check = surface.shape[-1], surface.shape[-1]
    filled: list[tuple[int, ...]] = []
    with tqdm(
        total=surface.done.size,
        initial=int(surface.done.sum()),
        desc=f"surface {' x '.join(map(str, surface.shape))}",
        unit="point",
        disable=not progress,
    ) as bar:
        for first in range(0, len(order), plan.group):
            group = [tuple(index) for index in order[first : first + plan.group]]
            if all(surface.done[index] for index in group):
                continue
            values = plan.values(coordinates[first : first + plan.group])
            before = len(filled)
            for j, index in enumerate(group):
                if not surface.done[index]:
                    store.record(index, {name: array[j] for name, array in values.items()})
                    filled.append(index)
            bar.update(len(filled) - before)
            if reference is not None and len(filled) >= next_check:
                next_check += row
                last = {name: array[-1:] for name, array in values.items()}
                point = coordinates[first : first + plan.group][-1:]
                difference = relative_difference(last, reference(point))
                if not difference <= RTOL:
                    log.warning(
                        "at %s the plan differs from the reference by %.1e: doing it all anew", point, difference
                    )
                    for index in filled:
                        surface.done[index] = False
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


def _axes(
    slice: Slice,
    resolution: int | Sequence[int] | None,
    extent: Sequence | None,
    axes: Sequence[np.ndarray] | None,
) -> dict[str, np.ndarray]:
    names = [AXIS_NAMES[i] if i < len(AXIS_NAMES) else f"axis{i + 1}" for i in range(slice.k)]
    if axes is not None:
        if resolution is not None or extent is not None:
            raise ValueError("give either axes, or resolution and extent")
        if len(axes) != slice.k:
            raise ValueError(f"the slice has {slice.k} direction(s), got {len(axes)} axes")
        return {name: np.asarray(axis, dtype=np.float64) for name, axis in zip(names, axes, strict=True)}
    if resolution is None:
        resolution = RESOLUTION.get(slice.k, 7)
    counts = [operator.index(n) for n in (resolution if isinstance(resolution, Iterable) else [resolution] * slice.k)]
    ranges = list(slice.extent) if extent is None else list(extent)
    if len(ranges) == 2 and np.ndim(ranges[0]) == 0:
        ranges = [tuple(ranges)] * slice.k
    if len(counts) != slice.k or len(ranges) != slice.k:
        raise ValueError(
            f"the slice has {slice.k} direction(s), got {len(counts)} resolution(s) and {len(ranges)} range(s)"
        )
    return {name: grid_axis(low, high, n) for name, (low, high), n in zip(names, ranges, counts, strict=True)}


def _fingerprint(objective: Objective, slice: Slice, surface: Surface) -> dict[str, str]:
    axes = hashlib.sha256("".join(map(hash_array, surface.axes.values())).encode()).hexdigest()
    return {
        **objective.fingerprint(),
        "origin": hash_array(slice.origin.cpu().numpy()),
        "directions": hash_array(slice.directions.cpu().numpy()),
        "axes": axes,
    }


def _provenance(objective: Objective, slice: Slice, checkpoint: Mapping[str, object] | None) -> dict:
    gram = slice.gram()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "landscape": landscape.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": {"device": str(objective.device), "threads": torch.get_num_threads()},
        "settings": objective.settings(),
        "slice": slice.info,
        "axes": [{"label": label, "unit": slice.info.get("unit")} for label in slice.info["labels"]],
        "gram": gram.tolist(),
        "origin_norm": float(slice.origin.double().norm()),
        "parameters": [
            [name, list(shape)] for name, shape in zip(objective.layout.names, objective.layout.shapes, strict=True)
        ],
        "at_origin": objective.evaluate_model(),
        "gradient_norm": objective.gradient_norm(),
        "checkpoint": dict(checkpoint or {}),
        "seconds": 0.0,
    }


def _check_same_values(surface: Surface, fresh: dict) -> None:
    """Refuse to continue a surface whose network now has other values at the origin.

    The fingerprint knows functions by name and code; what they depend on besides shows in their values.
    """
    for name, value in fresh["at_origin"].items():
        stored = surface.provenance["at_origin"][name]
        if not np.isclose(value, stored, rtol=1e-4, atol=1e-9, equal_nan=True):
            raise ValueError(
                f"{surface.path} was begun with {name} = {stored:.6g} at the origin, now it is {value:.6g}: "
                "has the loss or a metric changed? Choose another file name, or delete that file to start anew"
            )
