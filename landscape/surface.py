"""A surface: the loss on a grid of a slice of parameter space, and its crash-safe HDF5 file.

`values[metric][i, j]` belongs to `(x[i], y[j])`; a coordinate is the coefficient of the stored direction. NaN and
infinity are results. What was not computed is `done == False`.

A finished surface is one HDF5 file:

    /x, /y, ...           [n] coordinates, dimension scales, so that xarray shows labelled axes
    /loss, /accuracy, ... [nx, ny, ...] float64, one data set per metric
    /done                 [nx, ny, ...] bool
    /slice/origin         [p], /slice/directions [k, p]: what is large, written once
    /trajectories/NAME/   step [t], coordinates [t, k], distance [t], loss [t], loss_on_slice [t]
    /record/provenance, /record/fingerprint   JSON text

While it is computed, values and mask grow in a small second file `NAME.progress`, rewritten whole every few seconds;
`Surface.load` reads both.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from landscape.storage import read_hdf5, read_json, write_hdf5, write_json

log = logging.getLogger(__name__)

AXIS_NAMES = ("x", "y", "z", "u", "v", "w")
Array = np.ndarray


@dataclass(frozen=True)
class ProjectedTrajectory:
    """A training run seen from a slice.

    Attributes:
        step: `[t]` training step of each checkpoint.
        coordinates: `[t, k]` least-squares coordinates on the slice.
        distance: `[t]` Euclidean distance from the slice, in units of theta.
        loss: `[t]` loss of the checkpoint itself.
        loss_on_slice: `[t]` loss at the projected point.
    """

    step: Array
    coordinates: Array
    distance: Array
    loss: Array
    loss_on_slice: Array


@dataclass
class Surface:
    """Values of a loss and other metrics on a grid.

    Attributes:
        axes: Coordinates `[n]` by axis name, in the order of the grid's axes.
        values: `[nx, ny, ...]` float64 by metric name; the first metric is the loss.
        done: `[nx, ny, ...]` which points were computed.
        provenance: How it was made (JSON-able): settings, seeds, versions, plan, time, sanity report.
        trajectories: Training runs projected on the slice, by name.
        origin: `[p]` the point with coordinates zero, if known.
        directions: `[k, p]`, if known.
        path: The file it came from, if any.
    """

    axes: dict[str, Array]
    values: dict[str, Array]
    done: Array
    provenance: dict = field(default_factory=dict)
    trajectories: dict[str, ProjectedTrajectory] = field(default_factory=dict)
    origin: Array | None = None
    directions: Array | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        for name, array in {**self.values, "done": self.done}.items():
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, the axes {tuple(self.axes)} need {shape}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along each axis."""
        return tuple(len(axis) for axis in self.axes.values())

    @property
    def finished(self) -> bool:
        """Whether every point was computed."""
        return bool(self.done.all())

    def metric(self, name: str = "loss") -> Array:
        """Return the values of one metric, NaN where not computed.

        Args:
            name: A key of `values`.

        Returns:
            `[nx, ny, ...]` float64, a copy.
        """
        if name not in self.values:
            raise ValueError(f"no metric {name!r}; the surface has {', '.join(self.values)}")
        return np.where(self.done, self.values[name], np.nan)

    @classmethod
    def load(cls, path: str | os.PathLike, vectors: bool = False) -> "Surface":
        """Read a surface, finished or not.

        Args:
            path: An HDF5 file that `evaluate` wrote.
            vectors: Also read origin and directions, `(k + 1) * p` numbers.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or no surface.
        """
        path = Path(path)
        with read_hdf5(path, "surface") as file:
            axes = {name: file[name][()] for name in json.loads(file.attrs["axes"])}
            values, done = _read_values(file)
            identity = read_json(file, "record/fingerprint")
            surface = cls(
                axes=axes,
                values=values,
                done=done,
                provenance=read_json(file, "record/provenance"),
                trajectories={
                    name: ProjectedTrajectory(**{key: data[()] for key, data in group.items()})
                    for name, group in file["trajectories"].items()
                },
                origin=file["slice/origin"][()] if vectors and "slice" in file else None,
                directions=file["slice/directions"][()] if vectors and "slice" in file else None,
                path=path,
            )
        progress = progress_path(path)
        if progress.exists():
            with read_hdf5(progress, "progress") as file:
                if read_json(file, "record/fingerprint") == identity:
                    values, done = _read_values(file)
                    if done.sum() >= surface.done.sum():  # older, if a kill came just before it was removed
                        surface.values, surface.done = values, done
                else:
                    log.warning("%s belongs to another surface than %s and is ignored", progress, path)
        return surface

    def save(self, path: str | os.PathLike) -> None:
        """Write the surface as one file, in place of an old one."""
        self._write(path, fingerprint={})

    def _write(self, path: str | os.PathLike, fingerprint: Mapping[str, str]) -> None:
        with write_hdf5(path, "surface") as file:
            file.attrs["axes"] = json.dumps(list(self.axes))
            for name, coordinates in self.axes.items():
                file[name] = coordinates
                file[name].make_scale(name)
            _write_values(file, self.values, self.done)
            for name in (*self.values, "done"):
                for axis, label in enumerate(self.axes):
                    file[name].dims[axis].attach_scale(file[label])
            if self.origin is not None and self.directions is not None:
                file["slice/origin"] = self.origin
                file["slice/directions"] = self.directions
            trajectories = file.create_group("trajectories")
            for name, run in self.trajectories.items():
                group = trajectories.create_group(name)
                for key, array in vars(run).items():
                    group[key] = array
            write_json(file, "record/provenance", self.provenance)
            write_json(file, "record/fingerprint", dict(fingerprint))


class SurfaceStore:
    """A surface that is being computed, kept safe in a file.

    Opening a path that already holds the same question continues it; another question is refused. At most `interval`
    seconds of work are lost by a kill.

    Args:
        surface: The grid, with origin and directions; the values are filled by `record`.
        fingerprint: What identifies the question, by part (`"origin"`, `"data"`, ...): hashes or short texts.
        path: The HDF5 file; None keeps everything in memory.
        interval: Seconds between two writes.

    Raises:
        ValueError: The file holds the surface of another question; the message names what differs.
    """

    def __init__(
        self,
        surface: Surface,
        fingerprint: Mapping[str, str],
        path: str | os.PathLike | None = None,
        interval: float = 2.0,
    ) -> None:
        self.surface = surface
        self.fingerprint = dict(fingerprint)
        self.path = None if path is None else Path(path)
        self.interval = interval
        self.n_continued = 0
        if self.path is not None:
            surface.path = self.path
            if self.path.exists():
                self._continue(self.path)
            else:
                progress_path(self.path).unlink(missing_ok=True)
                surface._write(self.path, self.fingerprint)
        self._saved = time.monotonic()

    def _continue(self, path: Path) -> None:
        with read_hdf5(path, "surface") as file:
            stored = read_json(file, "record/fingerprint")
        keys = dict.fromkeys([*self.fingerprint, *stored])
        differing = [key for key in keys if stored.get(key) != self.fingerprint.get(key)]
        if differing:
            raise ValueError(
                f"{path} holds another surface; what differs: {', '.join(differing)}. "
                "Choose another file name, or delete that file to start anew"
            )
        old = Surface.load(path)
        self.surface.values, self.surface.done = old.values, old.done
        self.surface.provenance = old.provenance
        self.surface.trajectories = {**old.trajectories, **self.surface.trajectories}
        self.n_continued = int(old.done.sum())

    def record(self, index: tuple[int, ...], values: Mapping[str, float]) -> None:
        """Store the values of one grid point; they reach the disk within `interval` seconds of further calls."""
        for name, value in values.items():
            self.surface.values[name][index] = value
        self.surface.done[index] = True
        if self.path is not None and time.monotonic() - self._saved > self.interval:
            self.save_progress()

    def save_progress(self) -> None:
        """Write values and mask now, beside the file."""
        if self.path is None:
            return
        with write_hdf5(progress_path(self.path), "progress") as file:
            _write_values(file, self.surface.values, self.surface.done)
            write_json(file, "record/fingerprint", self.fingerprint)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Write the whole surface as one file and remove the progress file."""
        if self.path is not None:
            self.surface._write(self.path, self.fingerprint)
            progress_path(self.path).unlink(missing_ok=True)


def progress_path(path: str | os.PathLike) -> Path:
    """Return where the values of an unfinished surface are kept."""
    return Path(f"{os.fspath(path)}.progress")


def empty_surface(axes: Mapping[str, Array], metrics: list[str]) -> Surface:
    """Make a surface of which nothing is computed yet.

    Args:
        axes: Coordinates `[n]` by axis name.
        metrics: Names of the values, the loss first.

    Raises:
        ValueError: An axis is empty, not one-dimensional, not finite or not strictly increasing, or a name is used
            twice.
    """
    for name, coordinates in axes.items():
        if coordinates.ndim != 1 or not len(coordinates):
            raise ValueError(f"axis {name!r} needs shape [n] with n >= 1, got {coordinates.shape}")
        if not np.isfinite(coordinates).all() or (np.diff(coordinates) <= 0).any():
            raise ValueError(f"axis {name!r} must be finite and strictly increasing")
    reserved = {*axes, "done", "slice", "trajectories", "record"}
    clash = sorted(reserved & set(metrics))
    if clash:
        raise ValueError(f"metric name(s) {', '.join(clash)} are taken: choose others")
    shape = tuple(len(coordinates) for coordinates in axes.values())
    return Surface(
        axes={name: np.asarray(coordinates, dtype=np.float64) for name, coordinates in axes.items()},
        values={name: np.full(shape, np.nan) for name in metrics},
        done=np.zeros(shape, dtype=bool),
    )


def hash_array(array: Array) -> str:
    """Return the SHA-256 of an array's type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def lowest_point(surface: Surface, metric: str | None = None) -> tuple[tuple[int, ...], float] | None:
    """Return index and value of the lowest finite grid point; None if there is none.

    It is the lowest of the computed points, not a local minimum: it may lie on the border.

    Args:
        surface: Finished or not.
        metric: Which values. Default: the first metric, the loss.
    """
    values = surface.metric(metric or next(iter(surface.values)))
    values[~np.isfinite(values)] = math.inf
    flat = int(np.argmin(values))
    index = tuple(int(i) for i in np.unravel_index(flat, values.shape))
    return (index, float(values[index])) if math.isfinite(values[index]) else None


def _write_values(file: h5py.File, values: Mapping[str, Array], done: Array) -> None:
    file.attrs["metrics"] = json.dumps(list(values))
    for name, array in values.items():
        file[name] = array
    file["done"] = done


def _read_values(file: h5py.File) -> tuple[dict[str, Array], Array]:
    return {name: file[name][()] for name in json.loads(file.attrs["metrics"])}, file["done"][()]
