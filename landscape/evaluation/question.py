"""What a surface asks, written down: its grid, its fingerprint, how it is made."""

import hashlib
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import torch

import landscape
from landscape.arguments import expect, json_text, real_number, whole_number
from landscape.evaluation.grid import grid_axis
from landscape.evaluation.memory import free_memory
from landscape.objective import Objective
from landscape.slice import Slice
from landscape.surface import AXIS_NAMES, Surface, hash_array

RESOLUTION = {1: 101, 2: 51, 3: 21}
_POINT_BYTES = 32  # per axis and one more: coordinates, their order, values


def axes_of(
    slice: Slice,
    resolution: int | Sequence[int] | None,
    extent: Sequence | None,
    axes: Sequence[np.ndarray] | None,
) -> dict[str, np.ndarray]:
    """Return the coordinates along each axis, by name: those given, or by resolution and extent (see `evaluate`)."""
    expect("slice", slice, Slice, "a Slice, as the functions of directions return it")
    names = [AXIS_NAMES[i] if i < len(AXIS_NAMES) else f"axis{i + 1}" for i in range(slice.k)]
    if axes is not None:
        if resolution is not None or extent is not None:
            raise ValueError("give either axes, or resolution and extent")
        expect("axes", axes, (Sequence, np.ndarray), "one array of coordinates per direction")
        if len(axes) != slice.k:
            raise ValueError(f"the slice has {slice.k} direction(s), got {len(axes)} axes")
        given = {name: _coordinates(name, axis) for name, axis in zip(names, axes, strict=True)}
        _check_size([axis.size for axis in given.values()])
        return given
    if resolution is None:
        resolution = RESOLUTION.get(slice.k, 7)
    one = isinstance(resolution, str) or not isinstance(resolution, Iterable)
    counts = [whole_number("resolution", n, 1) for n in ([resolution] * slice.k if one else resolution)]  # type: ignore[union-attr]
    if extent is not None:
        expect("extent", extent, (Sequence, np.ndarray), "a range (low, high), or one per axis")
    ranges = list(slice.extent) if extent is None else list(extent)
    if len(ranges) == 2 and np.ndim(ranges[0]) == 0:
        ranges = [tuple(ranges)] * slice.k
    if len(counts) != slice.k or len(ranges) != slice.k:
        raise ValueError(
            f"the slice has {slice.k} direction(s), got {len(counts)} resolution(s) and {len(ranges)} range(s)"
        )
    _check_size(counts)
    return {name: grid_axis(*_range(pair), n) for name, pair, n in zip(names, ranges, counts, strict=True)}


def _coordinates(name: str, values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"axis {name!r} must be an array of numbers: {error}") from error


def _range(pair: Sequence[float]) -> tuple[float, float]:
    if np.shape(pair) != (2,):
        raise ValueError(f"a range is a pair (low, high), got {pair!r}")
    low, high = pair
    return real_number("the low end of a range", low), real_number("the high end of a range", high)


def _check_size(counts: Sequence[int]) -> None:
    """Refuse a grid that does not fit into memory, before any is taken."""
    n, free = math.prod(counts), free_memory()
    need = n * _POINT_BYTES * (len(counts) + 1)
    if free is not None and need > free:
        raise ValueError(
            f"a grid of {' x '.join(map(str, counts))} = {n:,} points needs {need / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free: ask for fewer points"
        )


def fingerprint_of(objective: Objective, slice: Slice, surface: Surface) -> dict[str, str]:
    """Return what identifies the question that a surface answers, by part."""
    axes = hashlib.sha256("".join(map(hash_array, surface.axes.values())).encode()).hexdigest()
    return {
        **objective.fingerprint(),
        "origin": hash_array(slice.origin.cpu().numpy()),
        "directions": hash_array(slice.directions.cpu().numpy()),
        "axes": axes,
    }


def provenance_of(objective: Objective, slice: Slice, checkpoint: Mapping[str, object] | None) -> dict:
    """Return how a surface is made, and the numbers of its sanity report that the grid does not hold (JSON-able)."""
    if checkpoint is not None:
        expect("checkpoint", checkpoint, Mapping, "what is known of the network, by name")
        json_text("checkpoint", dict(checkpoint))
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


def check_same_values(surface: Surface, fresh: dict) -> None:
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
