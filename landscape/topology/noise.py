"""How large a persistence can be by chance: from standard errors, from rounding, and from the spacing of the grid."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from landscape.surface import Surface

Array = np.ndarray
N_STANDARD_ERRORS = 2
# the engine lets a fast plan differ from the reference by 1e-5 in float32
_ROUNDING = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Noise:
    """The uncertainty of each value.

    Attributes:
        standard_error: `[nx, ny, ...]`, or None where it is not known.
        spacing: `[nx, ny, ...]` by how much an extremum between the grid points may go beyond each value.
        rounding: Relative error of a value by rounding.
        text: Where they come from, in words.
    """

    standard_error: Array | None
    spacing: Array
    rounding: float
    text: str

    def of_differences(self, values: Array, cells: Array, others: Array) -> Array:
        """Return how large the difference of two values can be by chance.

        Args:
            values: `[nx, ny, ...]`.
            cells: `[m]` flat indices.
            others: `[m]` flat indices of the second value; -1 where there is none.

        Returns:
            `[m]`: the largest of `2 sqrt(SE_1^2 + SE_2^2)`, of rounding and of spacing. A value that is not finite adds
            nothing.
        """
        ends = np.stack([cells, others])
        finite = (ends >= 0) & np.isfinite(values.ravel()[ends])
        size, spacing = (np.where(finite, array.ravel()[ends], 0.0) for array in (np.abs(values), self.spacing))
        noise = np.maximum(self.rounding * size.max(axis=0), spacing.max(axis=0))
        if self.standard_error is None:
            return noise
        error = np.where(finite, self.standard_error.ravel()[ends], 0.0)
        return np.fmax(noise, N_STANDARD_ERRORS * np.sqrt((error**2).sum(axis=0)))


def noise_of(surface: Surface, metric: str) -> Noise:
    """Estimate the uncertainty of a surface's values.

    Where the surface has the metric `METRIC_square`, the mean of the squared per-sample values `l^2` on the same data,
    the standard error of a mean over `n` samples is `SE = sqrt((E l^2 - (E l)^2) / n)`. Rounding is 1e-5 relative in
    float32, 1e-12 in float64. For the spacing, see `spacing_error`.

    Args:
        surface: Any.
        metric: A key of its values.
    """
    settings = surface.provenance.get("settings", {})
    dtype = settings.get("dtype", "float32")
    values = surface.metric(metric)
    rounding = _ROUNDING.get(dtype, _ROUNDING["float32"])
    text = f"spacing of the grid; rounding of {dtype}, {rounding:g} of the value"
    spacing = spacing_error(surface.axes, values)
    data = settings.get("data", {}).get("test" if metric.startswith("test_") else "training", {})
    square, n = surface.values.get(f"{metric}_square"), data.get("n_samples")
    if square is None or not n:
        return Noise(None, spacing, rounding, text)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.sqrt(np.maximum(square - values**2, 0) / n)
    text = f"{N_STANDARD_ERRORS} standard errors of the difference, from {n:,} samples; {text}"
    return Noise(error, spacing, rounding, text)


def noise_of_array(axes: Mapping[str, Array], values: Array) -> Noise:
    """Return the uncertainty of an array of no surface: spacing, and 8 units in the last place of its own type."""
    rounding = 8 * float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    text = "spacing of the grid" + (f"; rounding of {values.dtype}, {rounding:.2g} of the value" if rounding else "")
    return Noise(None, spacing_error(axes, values.astype(np.float64)), rounding, text)


def spacing_error(axes: Mapping[str, Array], values: Array) -> Array:
    """Estimate by how much an extremum between the grid points may go beyond the value at the nearest of them.

    It lies within half a spacing `h` along each axis, so that to second order the two differ by at most
    `sum_axis |f''| (h / 2)^2 / 2`: an eighth of the second differences. A narrow valley that crosses the grid askew has
    a chain of pits that deep, none of which is there.

    Args:
        axes: Coordinates `[n]` by axis name.
        values: `[nx, ny, ...]`.

    Returns:
        `[nx, ny, ...]`. An axis adds nothing at its ends, nor where a neighbor is not finite.
    """
    error = np.zeros(values.shape)
    for number, axis in enumerate(axes.values()):
        if len(axis) < 3:
            continue
        gaps = np.diff(axis)
        shape = [-1 if i == number else 1 for i in range(values.ndim)]
        with np.errstate(invalid="ignore", over="ignore"):
            slope = np.diff(values, axis=number) / gaps.reshape(shape)
            bend = np.abs(np.diff(slope, axis=number)) * ((gaps[1:] + gaps[:-1]) / 16).reshape(shape)
        inner = tuple(slice(1, -1) if i == number else slice(None) for i in range(values.ndim))
        error[inner] += np.where(np.isfinite(bend), bend, 0.0)
    return error
