"""The audit: a stored surface against the same points in float64, evaluated by the reference path."""

import logging
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from landscape.arguments import expect, whole_number
from landscape.evaluation.question import check_same_values, fingerprint_of
from landscape.evaluation.reference import reference_values
from landscape.objective import Objective
from landscape.sanity import center_index
from landscape.slice import Slice
from landscape.storage import read_hdf5, read_json
from landscape.surface import Surface, SurfaceStore, lowest_point

log = logging.getLogger(__name__)

TOLERANCE = {"float64": 1e-10}  # largest relative error that needs no warning, by the surface's precision
_OTHERWISE = 1e-5
Array = np.ndarray


@dataclass(frozen=True)
class Audit:
    """What a sample of a surface is, and what it should be.

    Attributes:
        axes: Names of the coordinates.
        indices: `[m, k]` which grid points: the center, the lowest, a corner, then random ones.
        coordinates: `[m, k]`.
        stored: `[m]` values of the surface by metric name.
        exact: `[m]` the same in float64.
        relative_errors: `[m]` `|stored - exact| / max(|exact|, 1e-7)` by metric name; 0 where both are the same without
            being finite, infinite where only one is finite. Accuracies are compared without dividing, since rounding
            moves them by whole samples.
        tolerance: Largest relative error that needs no warning; None for a preview, which may be off.
    """

    axes: tuple[str, ...]
    indices: Array
    coordinates: Array
    stored: dict[str, Array]
    exact: dict[str, Array]
    relative_errors: dict[str, Array]
    tolerance: float | None

    @property
    def worst(self) -> tuple[str, int]:
        """Metric and row of the largest relative error, accuracies left out unless there is nothing else."""
        names = [name for name in self.stored if not _is_accuracy(name)] or list(self.stored)
        name = max(names, key=lambda name: self.relative_errors[name].max())
        return name, int(self.relative_errors[name].argmax())

    @property
    def largest_error(self) -> float:
        """The largest relative error, see `worst`."""
        name, row = self.worst
        return float(self.relative_errors[name][row])

    @property
    def exceeded(self) -> bool:
        """Whether the largest relative error is beyond the tolerance."""
        return self.tolerance is not None and self.largest_error > self.tolerance

    def describe(self) -> str:
        """Say in a line how large the errors are, and where."""
        name, row = self.worst
        where = ", ".join(f"{axis} = {c:.4g}" for axis, c in zip(self.axes, self.coordinates[row], strict=True))
        text = f"largest error of {len(self.indices)} audited points: {self.largest_error:.1e} relative to float64"
        if self.largest_error > 0:
            text += f" ({name} at {where}: {self.stored[name][row]:.9g}, in float64 {self.exact[name][row]:.9g})"
        shares = [self.relative_errors[other].max() for other in self.stored if _is_accuracy(other) and other != name]
        if shares and max(shares) > 0:
            text += f"; accuracies differ by up to {max(shares):.2g}"
        if self.exceeded:
            text += f"; beyond {self.tolerance:.0e}: evaluate it with dtype float64 where that matters"
        return text

    def record(self) -> dict[str, Any]:
        """Return what a surface keeps of its audit (JSON-able)."""
        return {
            "text": self.describe(),
            "n_points": len(self.indices),
            "largest_error": self.largest_error,
            "tolerance": self.tolerance,
            "exceeded": self.exceeded,
            "indices": self.indices.tolist(),
            "errors": {name: errors.tolist() for name, errors in self.relative_errors.items()},
        }


def audit(objective: Objective, slice: Slice, surface: Surface, n: int = 20, seed: int = 0) -> Audit:
    """Evaluate a random sample of a surface again, in float64 and by the reference path.

    The center of the grid, its lowest point and a corner are always in the sample. The network, its buffers and the
    data are those of the surface in twice the precision, batch-norm policy and batches the same.

    Args:
        objective: The one that the surface was evaluated with, in the precision it had then.
        slice: Likewise.
        surface: Finished or not; only computed points are looked at.
        n: Number of points, at least 3; all of a smaller surface.
        seed: Of the sample.

    Raises:
        ValueError: The surface is another one, nothing of it is computed, or `n` is below 3.

    Example:
        >>> print(audit(objective, plane, surface).describe())  # doctest: +SKIP
        largest error of 20 audited points: 3.1e-07 relative to float64 ...
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    expect("slice", slice, Slice, "a Slice, as the functions of directions return it")
    expect("surface", surface, Surface, "a Surface")
    n, seed = whole_number("n", n, 0), whole_number("seed", seed, 0)
    if n < 3:
        raise ValueError(f"an audit needs at least 3 points, the center, the lowest and a corner; got n={n}")
    _check_same(objective, slice, surface)
    indices = _sample(surface, n, seed)
    coordinates = np.stack([axis[indices[:, i]] for i, axis in enumerate(surface.axes.values())], axis=1)
    try:
        wide = objective.to(dtype=torch.float64)
        exact = reference_values(wide, slice.to(dtype=torch.float64), objective.chunk_size)(coordinates)
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot be evaluated in float64 ({' '.join(str(error).split())[:200]}): a forward function or "
            "module that fixes the precision, such as by .float(), cannot be audited"
        ) from error
    stored = {name: surface.values[name][tuple(indices.T)] for name in exact}
    is_preview = surface.provenance.get("plan", {}).get("name") == "preview"
    dtype = str(objective.dtype).removeprefix("torch.")
    return Audit(
        axes=tuple(surface.axes),
        indices=indices,
        coordinates=coordinates,
        stored=stored,
        exact=exact,
        relative_errors={name: _errors(stored[name], exact[name], _is_accuracy(name)) for name in exact},
        tolerance=None if is_preview else TOLERANCE.get(dtype, _OTHERWISE),
    )


def keep_audit(found: Audit, objective: Objective, slice: Slice, surface: Surface) -> None:
    """Store an audit in the provenance of a surface, and in its file if it has one.

    Args:
        found: What `audit` returned.
        objective: The one that the surface was evaluated with.
        slice: Likewise.
        surface: As `evaluate` returned it, with origin and directions.
    """
    if found.exceeded:
        log.warning("audit: %s", found.describe())
    if surface.path is not None:
        with closing(SurfaceStore(surface, fingerprint_of(objective, slice, surface), surface.path)) as store:
            surface.provenance["audit"] = found.record()
            store.finish()
    surface.provenance["audit"] = found.record()


def _check_same(objective: Objective, slice: Slice, surface: Surface) -> None:
    """Refuse a surface that another objective or slice was asked for."""
    differing = []
    if slice.k != len(surface.axes):
        differing.append("number of directions")
    if objective.metric_names != list(surface.values):
        differing.append("metrics")
    if surface.origin is not None and not np.array_equal(surface.origin, slice.origin.cpu().numpy()):
        differing.append("origin")
    if surface.directions is not None and not np.array_equal(surface.directions, slice.directions.cpu().numpy()):
        differing.append("directions")
    if not differing and surface.path is not None and surface.path.exists():
        with read_hdf5(surface.path, "surface") as file:
            known = read_json(file, "record/fingerprint")
        asked = fingerprint_of(objective, slice, surface)
        differing = [part for part in known if known[part] != asked.get(part)]
    if differing:
        raise ValueError(
            f"the surface was not evaluated with this objective and slice; what differs: {', '.join(differing)}"
        )
    if "at_origin" in surface.provenance:
        check_same_values(surface, {"at_origin": objective.evaluate_model()})


def _sample(surface: Surface, n: int, seed: int) -> Array:
    """Return indices `[m, k]` of computed points: center, lowest, a corner, random ones without repetition."""
    done = np.flatnonzero(surface.done)
    if not len(done):
        raise ValueError("nothing of the surface is computed yet: there is nothing to audit")
    lowest = lowest_point(surface)
    ends = np.indices((2,) * len(surface.shape)).reshape(len(surface.shape), -1).T[::-1]  # the high corner first
    corners = [tuple((end * (np.array(surface.shape) - 1)).tolist()) for end in ends]
    corner = next((index for index in corners if surface.done[index]), None)
    wanted = [center_index(surface), None if lowest is None else lowest[0], corner]
    first = [
        int(np.ravel_multi_index(index, surface.shape)) for index in wanted if index is not None and surface.done[index]
    ]
    others = np.random.default_rng(seed).permutation(done)
    chosen = list(dict.fromkeys([*first, *others.tolist()]))[:n]
    return np.stack(np.unravel_index(chosen, surface.shape), axis=1)


def _errors(stored: Array, exact: Array, is_accuracy: bool) -> Array:
    with np.errstate(invalid="ignore"):
        errors = np.abs(stored - exact) / (1.0 if is_accuracy else np.maximum(np.abs(exact), 1e-7))
    same = (stored == exact) | (np.isnan(stored) & np.isnan(exact))
    finite = np.isfinite(stored) & np.isfinite(exact)
    return np.where(same, 0.0, np.where(finite, errors, np.inf))


def _is_accuracy(name: str) -> bool:
    return name == "accuracy" or name.endswith("_accuracy")
