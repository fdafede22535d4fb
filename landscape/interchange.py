"""Files of Li et al.'s code, read and written.

They are the HDF5 files of https://github.com/tomgoldstein/loss-landscape (Li et al. 2018, arXiv:1712.09913). Their
two-dimensional arrays are the transpose of ours, `Z[i, j] = L(x_j, y_i)`, their accuracies are percentages, and a point
that was not computed holds a marker.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import h5py
import numpy as np

from landscape.contents import has_attribute, read_array, read_text
from landscape.output import create_hdf5
from landscape.storage import open_hdf5, replacing
from landscape.surface import Surface, empty_surface

Array = np.ndarray
Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""Name and shape of each parameter, in `named_parameters()` order."""

# our metric -> their data set, its unit, and the value that stands for "not computed"
_METRICS = {
    "loss": ("train_loss", 1.0, -1.0),
    "accuracy": ("train_acc", 100.0, -1.0),
    "test_loss": ("test_loss", 1.0, -1.0),
    "test_accuracy": ("test_acc", 100.0, -1.0),
    "min_eig": ("min_eig", 1.0, 1.0),
    "max_eig": ("max_eig", 1.0, -1.0),
}
_COORDINATES = ("xcoordinates", "ycoordinates")
_DIRECTIONS = ("xdirection", "ydirection", "zdirection")
_EXPLAINED = ("explained_variance_ratio_", "singular_values_", "explained_variance_")
_PROJECTION = ("proj_xcoord", "proj_ycoord")


def read_li_surface(path: str | os.PathLike) -> Surface:
    """Read a surface of Li et al.'s code.

    Their names become ours: `train_loss` `loss`, `train_acc` `accuracy`, `test_acc` `test_accuracy`; `test_loss`,
    `min_eig` and `max_eig` stay. Accuracies become fractions, descending coordinates ascending. `done` is where the
    first metric of the file was computed; another metric that lacks some of these points is NaN there, and
    `provenance["imported"]["not_computed"]` counts them.

    Args:
        path: An HDF5 file with `xcoordinates` and, for a plane, `ycoordinates`.

    Returns:
        The surface, values `[nx]` or `[nx, ny]`. `provenance["imported"]` says where it is from.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no surface of theirs, or its arrays do not fit its coordinates.
    """
    with _open(path, "xcoordinates") as file:
        axes, orders = {}, []
        for axis, name in zip("xy", _COORDINATES, strict=True):
            if name not in file:
                break
            coordinates = _numbers(file, name)
            if coordinates.ndim != 1:
                raise ValueError(f"{path}: {name} has shape {coordinates.shape}, expected [n]")
            orders.append(np.argsort(coordinates))
            axes[axis] = coordinates[orders[-1]]
        stored = {ours: _METRICS[ours] for ours in _METRICS if _METRICS[ours][0] in file}
        if not stored:
            raise ValueError(f"{path} holds no values that are known; it has: {', '.join(file)}")
        try:
            surface = empty_surface(axes, list(stored))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

        computed = {}
        for ours, (theirs, unit, marker) in stored.items():
            array = _numbers(file, theirs)
            if array.shape != surface.shape[::-1]:
                raise ValueError(f"{path}: {_wrong_shape(theirs, array.shape, surface.shape)}")
            array = array.T[np.ix_(*orders)]
            computed[ours] = array != marker
            surface.values[ours] = np.where(computed[ours], array / unit, np.nan)
        read = {"dir_file", *_COORDINATES, *(theirs for theirs, _, _ in stored.values())}
        surface.done = computed[next(iter(stored))]
        lacking = {ours: int((surface.done & ~mask).sum()) for ours, mask in computed.items()}
        lacking = {ours: count for ours, count in lacking.items() if count}
        surface.provenance = {
            "imported": {
                "file": os.fspath(path),
                "format": "HDF5 of Li et al. 2018, arXiv:1712.09913",
                "dir_file": _text(file, "dir_file"),
                "not_computed": lacking,
                "left_out": sorted(set(file) - read),
            }
        }
    return surface


def write_li_surface(surface: Surface, path: str | os.PathLike, dir_file: str = "") -> list[str]:
    """Write a line or plane as Li et al.'s code does.

    Args:
        surface: One or two axes. The metrics `loss`, `accuracy`, `test_loss`, `test_accuracy`, `min_eig` and `max_eig`
            are written; accuracies must be fractions.
        path: The file to write.
        dir_file: Name of the direction file that their programs shall look for.

    Returns:
        What their format cannot hold and is not in the file.

    Raises:
        ValueError: The surface has more than two axes or none of these metrics, or a computed value equals their marker
            for "not computed" (1 for `min_eig`, -1 otherwise).
    """
    if len(surface.axes) > 2:
        raise ValueError(f"Li et al.'s format holds lines and planes, the surface has {len(surface.axes)} axes")
    metrics = [name for name in surface.values if name in _METRICS]
    if not metrics:
        raise ValueError(f"the surface has {', '.join(surface.values)}; Li et al.'s format holds {', '.join(_METRICS)}")
    arrays = {}
    for ours in metrics:
        theirs, unit, marker = _METRICS[ours]
        array = surface.values[ours] * unit
        clash = np.argwhere(surface.done & (array == marker))
        if len(clash):
            raise ValueError(
                f"{ours} is {marker / unit:g} at grid index {tuple(clash[0].tolist())}: "
                f"Li et al.'s format cannot tell this from 'not computed'; leave {ours} out"
            )
        arrays[theirs] = np.where(surface.done, array, marker).T
    with replacing(path) as temporary, create_hdf5(temporary) as file:
        file["dir_file"] = dir_file
        for name, coordinates in zip(_COORDINATES, surface.axes.values(), strict=False):
            file[name] = coordinates
        for theirs, array in arrays.items():
            file[theirs] = array
    left_out = [f"metric {name}" for name in surface.values if name not in _METRICS]
    left_out += [f"trajectory {name}" for name in surface.trajectories]
    left_out += [name for name in ("origin", "directions") if getattr(surface, name) is not None]
    return left_out + (["provenance"] if surface.provenance else [])


def read_li_directions(
    path: str | os.PathLike, shapes: Shapes, state_names: Sequence[str] | None = None
) -> tuple[Array, dict[str, Array]]:
    """Read the directions of Li et al.'s code: one data set per parameter, numbered from 0.

    Args:
        path: An HDF5 file with the groups `xdirection`, `ydirection` (for a plane), `zdirection` (for a volume).
        shapes: Name and shape of each parameter to read, in the order of theta.
        state_names: What the data sets of a file made with `dir_type=states` belong to: `list(model.state_dict())`.
            They count where the file has as many data sets as they are; otherwise, and without them, `shapes` does.

    Returns:
        Directions `[k, p]`, float32 or wider, and those of `explained_variance_ratio_`, `singular_values_` and
        `explained_variance_` that the file has (PCA directions do).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no directions, or directions of another network.
    """
    unknown = [name for name, _ in shapes if state_names is not None and name not in state_names]
    if state_names is not None and unknown:
        raise ValueError(f"parameter {unknown[0]!r} is not among state_names: {', '.join(state_names)}")
    with _open(path, "xdirection") as file:
        listed = [name for name, _ in shapes]
        if state_names is not None and len(file["xdirection"]) == len(state_names):
            listed = list(state_names)
        rows = []
        for direction in (name for name in _DIRECTIONS if name in file):
            group = file[direction]
            if not isinstance(group, h5py.Group) or set(group) != {str(i) for i in range(len(group))}:
                raise ValueError(f"{path}: {direction} must be a group of data sets named 0, 1, 2, ...")
            if len(group) != len(listed):
                remedy = "" if state_names else " (for a file made with dir_type=states give state_names)"
                raise ValueError(
                    f"{path}: {direction} has {len(group)} tensors, expected {len(listed)}{remedy}: "
                    "is it of another network?"
                )
            parts = []
            for name, shape in shapes:
                part = _numbers(group, str(listed.index(name)), dtype=None)
                if part.shape != tuple(shape):
                    raise ValueError(
                        f"{path}: {direction} has shape {part.shape} for parameter {name!r}, expected {tuple(shape)}: "
                        "is it of another network?"
                    )
                parts.append(part.reshape(-1))
            rows.append(np.concatenate(parts))
        directions = np.stack(rows)
        info = {name: _numbers(file, name) for name in _EXPLAINED if name in file}
    return directions.astype(np.result_type(directions, np.float32), copy=False), info


def write_li_directions(
    path: str | os.PathLike, directions: Array, shapes: Shapes, info: Mapping[str, Array] | None = None
) -> None:
    """Write directions as Li et al.'s code does with `dir_type=weights`.

    Args:
        path: The file to write.
        directions: `[k, p]`, k from 1 to 3. Their programs know two; the third goes to `zdirection`.
        shapes: Name and shape of every parameter of the network, in `named_parameters()` order.
        info: Any of `explained_variance_ratio_`, `singular_values_`, `explained_variance_`.

    Raises:
        ValueError: The directions do not fit the shapes, or `info` has another key.
    """
    sizes = [math.prod(shape) for _, shape in shapes]
    if directions.ndim != 2 or not 1 <= len(directions) <= 3 or directions.shape[1] != sum(sizes):
        raise ValueError(f"directions have shape {directions.shape}, expected [1 to 3, {sum(sizes)}]")
    other = sorted(set(info or {}) - set(_EXPLAINED))
    if other:
        raise ValueError(f"info has {', '.join(other)}; the format holds {', '.join(_EXPLAINED)}")
    with replacing(path) as temporary, create_hdf5(temporary) as file:
        for name, row in zip(_DIRECTIONS, directions, strict=False):
            group = file.create_group(name)
            for i, (part, (_, shape)) in enumerate(zip(np.split(row, np.cumsum(sizes)[:-1]), shapes, strict=True)):
                group[str(i)] = part.reshape(shape)
        for name, array in (info or {}).items():
            file[name] = array


def read_li_projection(path: str | os.PathLike) -> Array:
    """Read a trajectory projected by Li et al.'s code.

    Their default projection divides by the norm of each direction, not by its square, and takes the directions as
    orthogonal: it is right for orthonormal directions only. Project anew where the checkpoints are at hand.

    Returns:
        `[t, 2]` coordinates, as stored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no projection file of theirs.
    """
    with _open(path, "proj_xcoord") as file:
        if "proj_ycoord" not in file:
            raise ValueError(f"{path} has no proj_ycoord; it has: {', '.join(file)}")
        x, y = (_numbers(file, name) for name in _PROJECTION)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"{path}: proj_xcoord and proj_ycoord have shapes {x.shape} and {y.shape}, expected [t]")
    return np.stack([x, y], axis=1)


def write_li_projection(path: str | os.PathLike, coordinates: Array) -> None:
    """Write the coordinates `[t, 2]` of a projected trajectory as Li et al.'s code does."""
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise ValueError(f"coordinates have shape {coordinates.shape}, expected [t, 2]")
    with replacing(path) as temporary, create_hdf5(temporary) as file:
        for name, column in zip(_PROJECTION, coordinates.T, strict=True):
            file[name] = column


@contextmanager
def _open(path: str | os.PathLike, key: str) -> Iterator[h5py.File]:
    """Open a file of Li et al.'s code that must hold `key`."""
    with open_hdf5(path) as file:
        if has_attribute(file, "landscape_kind"):
            raise ValueError(f"{path} was written by landscape and needs no import: open it as it is")
        if key not in file:
            raise ValueError(
                f"{path} has no {key}, which such a file of Li et al.'s code has; it has: {', '.join(file)}"
            )
        yield file


def _numbers(group: h5py.Group, name: str, dtype: type | None = np.float64) -> Array:
    data = group[name]
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "fiu":
        raise ValueError(f"{group.file.filename}: {name} must be an array of numbers, it is {data!r}")
    values = read_array(group, name, data.shape)
    return values if dtype is None else values.astype(dtype)


def _text(group: h5py.Group, name: str) -> str:
    return read_text(group, name) if name in group else ""


def _wrong_shape(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    expected = list(shape[::-1])
    text = f"{name} has shape {list(found)}, the coordinates need {expected}"
    if len(shape) == 2 and found == shape:
        text += (
            ". Li et al.'s code writes grids of unequal sides like this, with the values in the order of the other "
            f"shape: where the file is theirs, store `values.reshape{shape[::-1]}` as {name} and read it again"
        )
    elif len(found) != len(shape):
        text += f": a {len(found)}-D array in a {len(shape)}-D file, probably left over from another run"
    return text
