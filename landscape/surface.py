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

from landscape.arguments import expect, file_path, real_number
from landscape.contents import Number, check_value, read_array, read_attribute, read_group
from landscape.lock import Lock
from landscape.storage import read_hdf5, read_json, without_known_code, write_hdf5, write_json

log = logging.getLogger(__name__)

AXIS_NAMES = ("x", "y", "z", "u", "v", "w")
Array = np.ndarray

_SOME, _TEXT = (*Number, type(None)), (str, type(None))
PROVENANCE = {
    "axes?": [{"label?": _TEXT, "unit?": _TEXT}],
    "settings?": {
        **{"model?": str, "n_parameters?": int, "dtype?": str, "batch-norm policy?": str, "penalty?": Number},
        "data?": {"*": {"name?": str, "n_samples?": int, "*": object}},
        "metrics?": {"*": str},
    },
    "slice?": {"explained_variance_ratio?": [Number], "singular_values?": [Number]},
    "plan?": {
        **{"name?": str, "chunk_size?": (int, type(None)), "group?": int, "notes?": [str]},
        "preview_error?": {"center": _SOME, "corner": _SOME},
    },
    "audit?": {"text": str, "exceeded": bool},
    "at_origin?": {"*": Number},
    "checkpoint?": {"loss?": _SOME},
    "gram?": [[Number]],
    "parameters?": [[object]],
    **{"gradient_norm?": _SOME, "origin_norm?": Number, "seconds?": Number, "created?": str},
    **{"imported?": dict, "versions?": dict, "machine?": dict},
}
"""Of what is known of a surface's provenance, the structure, see `contents.check_value`; all of it may be missing."""


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

    def __post_init__(self) -> None:
        t = len(self.step)
        for name, array in vars(self).items():
            if array.ndim != (2 if name == "coordinates" else 1) or len(array) != t or not t:
                wanted = "[t, k]" if name == "coordinates" else "[t]"
                raise ValueError(f"{name} of a trajectory needs shape {wanted}, t = {t} >= 1, got {list(array.shape)}")


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
        expect("axes", self.axes, Mapping, "coordinates by axis name")
        expect("values", self.values, Mapping, "arrays by metric name")
        for name, array in {**self.values, "done": self.done}.items():
            expect(name, array, np.ndarray, "a NumPy array")
        for name, axis in self.axes.items():
            if np.ndim(axis) != 1 or not len(axis):
                raise ValueError(f"axis {name!r} needs shape [n] with n >= 1, got {list(np.shape(axis))}")
        if not self.axes or not self.values:
            raise ValueError("a surface needs at least one axis and one metric")
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
        progress = progress_path(path)
        had_progress = progress.exists()
        with read_hdf5(path, "surface") as file:
            axes = {name: read_array(file, name, [None]) for name in _names(file, "axes")}
            metrics, shape = _names(file, "metrics"), tuple(map(len, axes.values()))
            if "done" in {*axes, *metrics} or not all(shape):
                raise ValueError(f"{path} is damaged: an axis is empty, or an axis or a metric is named done")
            values, done = _read_values(file, metrics, shape)
            identity = without_known_code(read_json(file, "record/fingerprint", dict))
            with_vectors = vectors and "slice" in file
            directions = read_array(file, "slice/directions", [len(axes), None], "f") if with_vectors else None
            surface = cls(
                axes=axes,
                values=values,
                done=done,
                provenance=read_json(file, "record/provenance", dict),
                trajectories=_read_trajectories(file, len(axes)),
                origin=None if directions is None else read_array(file, "slice/origin", directions.shape[1:], "f"),
                directions=directions,
                path=path,
            )
            _check_fits(surface, os.fspath(path))
        try:
            with read_hdf5(progress, "progress") as file:
                if without_known_code(read_json(file, "record/fingerprint", dict)) == identity:
                    values, done = _read_values(file, metrics, shape)
                    if done.sum() >= surface.done.sum():  # older, if a kill came just before it was removed
                        surface.values, surface.done = values, done
                else:
                    log.warning("%s belongs to another surface than %s and is ignored", progress, path)
        except FileNotFoundError:  # none, or a job has just ended and put all into the one file
            if had_progress:
                return cls.load(path, vectors)
        return surface

    def save(self, path: str | os.PathLike) -> None:
        """Write the surface as one file, in place of an old one.

        Raises:
            ValueError: Provenance or trajectories are of a structure that could not be read again.
            BlockingIOError: Another process is writing it.
        """
        path = file_path(path)
        _check_fits(self, os.fspath(path))
        with Lock(path):
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

    Opening a path that already holds the same question continues it; another question is refused. A kill loses at most
    what came since the last write, `interval` seconds and what was in work. Until `close` no other process can open the
    path for writing.

    Args:
        surface: The grid, with origin and directions; the values are filled by `record`.
        fingerprint: What identifies the question, by part (`"origin"`, `"data"`, ...): hashes or short texts.
        path: The HDF5 file; None keeps everything in memory.
        interval: Seconds between two writes.

    Raises:
        ValueError: The file holds the surface of another question; the message names what differs.
        BlockingIOError: Another process is writing the file.
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
        self.path = None if path is None else file_path(path)
        self.interval = real_number("interval", interval, 0)
        self.n_continued = 0
        self._lock: Lock | None = None
        if self.path is not None:
            surface.path = self.path
            self._lock = Lock(self.path)
            try:
                if self.path.exists():
                    self._continue(self.path)
                else:
                    progress_path(self.path).unlink(missing_ok=True)
                    surface._write(self.path, self.fingerprint)
            except BaseException:
                self._lock.release()
                raise
            self._lock.take()
        self._saved = time.monotonic()

    def _continue(self, path: Path) -> None:
        with read_hdf5(path, "surface") as file:
            stored = without_known_code(read_json(file, "record/fingerprint", dict))
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
        if self.path is None or self._lock is None:
            return
        self._lock.check()
        if not self.path.exists():  # removed by somebody; progress alone would be taken for a leftover
            self.surface._write(self.path, self.fingerprint)
        with write_hdf5(progress_path(self.path), "progress") as file:
            _write_values(file, self.surface.values, self.surface.done)
            write_json(file, "record/fingerprint", self.fingerprint)
        self._saved = time.monotonic()

    def forget_progress(self) -> None:
        """Remove the progress file, whose values are not to be gone on from."""
        if self.path is not None and self._lock is not None:
            self._lock.check()
            progress_path(self.path).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the whole surface as one file and remove the progress file."""
        if self.path is not None and self._lock is not None:
            self._lock.check()
            self.surface._write(self.path, self.fingerprint)
            progress_path(self.path).unlink(missing_ok=True)

    def finish(self) -> None:
        """Save, and close."""
        try:
            self.save()
        finally:
            self.close()

    def close(self) -> None:
        """Let others write the file; nothing is written here."""
        if self._lock is not None:
            self._lock.release()


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


def _read_values(file: h5py.File, metrics: list[str], shape: tuple[int, ...]) -> tuple[dict[str, Array], Array]:
    if (found := _names(file, "metrics")) != metrics:
        raise ValueError(f"{file.filename} holds {', '.join(found)}, expected {', '.join(metrics)}: it is damaged")
    return {name: read_array(file, name, shape) for name in metrics}, read_array(file, "done", shape, "b")


def _names(file: h5py.File, attribute: str) -> list[str]:
    """Return the names of axes or metrics, at least one."""
    where = f"{file.filename}: {attribute}"
    try:
        names = json.loads(read_attribute(file, attribute, str))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not the JSON that landscape writes ({error}): it is damaged") from error
    check_value(names, [str], where)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{where} must be one name or more, each once, got {names}: it is damaged")
    return names


def _read_trajectories(file: h5py.File, k: int) -> dict[str, ProjectedTrajectory]:
    runs = {}
    for name in read_group(file, "trajectories"):
        group = read_group(file, f"trajectories/{name}")
        numbers = {key: read_array(group, key, [None]) for key in ("step", "distance", "loss", "loss_on_slice")}
        try:
            runs[name] = ProjectedTrajectory(coordinates=read_array(group, "coordinates", [None, k]), **numbers)
        except ValueError as error:
            raise ValueError(f"{file.filename} is damaged: {error}") from error
    return runs


def _check_fits(surface: Surface, where: str) -> None:
    """Refuse what the readers of a surface could not use: a provenance or trajectories of another structure."""
    k, facts = len(surface.axes), json.loads(json.dumps(surface.provenance))  # as it is stored: lists, not tuples
    check_value(facts, PROVENANCE, f"{where}: provenance")
    for name, run in surface.trajectories.items():
        if run.coordinates.shape[1] != k:
            raise ValueError(f"{where}: trajectory {name!r} has {run.coordinates.shape[1]} coordinates for {k} axes")
    for key in ("axes", "gram"):
        if facts.get(key) and len(facts[key]) != k:
            raise ValueError(f"{where}: its provenance has {key} for {len(facts[key])} axes, it has {k}")
    if any(len(row) != k for row in facts.get("gram") or []):
        raise ValueError(f"{where}: its provenance has a gram matrix that is not square")
    for entry in facts.get("parameters", []):
        if len(entry) != 2:
            raise ValueError(f"{where}: its provenance has parameters that are not pairs of name and shape")
        check_value({"name": entry[0], "shape": entry[1]}, {"name": str, "shape": [int]}, f"{where}: parameters")
