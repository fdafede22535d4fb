"""Which values of a surface are drawn, on which grid, and at which levels."""

import math
from typing import NamedTuple

import numpy as np

from landscape.arguments import real_number
from landscape.figures.style import is_share, require_scale, unit_factor
from landscape.sanity import preview_note
from landscape.surface import Surface

Array = np.ndarray
_GAPS_FROM = 0.9


class Drawn(NamedTuple):
    """The values of one metric as they are drawn.

    Attributes:
        axes: `[n]` coordinates per axis.
        values: `[nx, ny, ...]` in the unit shown (accuracies in percent), NaN where there is a gap.
        heights: `[nx, ny, ...]` the same, or its decimal logarithm.
        notes: What the figure must say about them.
    """

    axes: tuple[Array, ...]
    values: Array
    heights: Array
    notes: tuple[str, ...]


class Levels(NamedTuple):
    """Evenly spaced contour levels.

    Attributes:
        values: `[n]` in the units of `Drawn.heights`.
        step: Distance between two.
        text: `[n]` the levels in the metric's unit.
        low: Lowest height drawn.
        high: Highest height drawn: the ceiling, where one is given.
    """

    values: Array
    step: float
    text: tuple[str, ...]
    low: float
    high: float


def drawn(surface: Surface, metric: str, scale: str = "linear") -> Drawn:
    """Select what of a metric is drawn.

    Points that are not finite, or not positive on a log scale, are gaps; nothing is filled in. Of a surface of which
    less than 90 % is computed, the finest complete grid of rows and columns is shown, so that a run that goes from
    coarse to fine shows the whole picture at any time; above that, missing points are gaps.

    Args:
        surface: Finished or not.
        metric: A key of its values.
        scale: `"linear"` or `"log"`.

    Raises:
        ValueError: Unknown metric or scale.
    """
    require_scale(scale)
    values = surface.metric(metric) * unit_factor(metric)
    preview = preview_note(surface)
    notes = [] if preview is None else [preview]
    share = float(surface.done.mean())
    rows = tuple(np.arange(n) for n in surface.shape)
    if share < 1:
        note = f"{math.floor(100 * share)} % of the points computed"
        if share < _GAPS_FROM:
            rows = complete_grid(surface.done)
            if values[np.ix_(*rows)].size < surface.done.sum():
                note += f", shown on {' x '.join(str(len(r)) for r in rows)}"
        notes.append(note)
    selected = np.ix_(*rows)
    values, done = values[selected], surface.done[selected]
    n_bad = int((done & ~np.isfinite(values)).sum())
    if n_bad:
        notes.append(f"gaps: {n_bad} of {done.sum()} points are not finite")
    values = np.where(np.isfinite(values), values, np.nan)
    heights = values
    if scale == "log":
        n_low = int((values <= 0).sum())
        values = np.where(values > 0, values, np.nan)
        heights = np.log10(values)
        notes.append("log scale" + (f"; gaps: {n_low} point(s) not above 0" if n_low else ""))
    axes = tuple(axis[r] for axis, r in zip(surface.axes.values(), rows, strict=True))
    return Drawn(axes, values, heights, tuple(notes))


def complete_grid(done: Array) -> tuple[Array, ...]:
    """Find the grid of rows and columns, all of whose points were computed, that reaches farthest and is finest.

    Args:
        done: `[nx, ny, ...]` bool.

    Returns:
        Per axis the indices that are kept, ascending; empty where nothing was computed.
    """
    if done.ndim == 1:
        return (np.flatnonzero(done),)
    counts = done.sum(axis=tuple(range(1, done.ndim)))
    best: tuple[Array, ...] = (np.arange(0),) * done.ndim
    for least in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts >= least)
        grid = (rows, *complete_grid(np.asarray(done[rows].all(axis=0))))
        best = max(best, grid, key=_reach_and_size)
    return best


def _reach_and_size(grid: tuple[Array, ...]) -> tuple[int, int]:
    reach = math.prod(int(rows[-1] - rows[0]) + 1 if len(rows) else 0 for rows in grid)
    return reach, math.prod(map(len, grid))


def to_height(value: Array | float, scale: str) -> Array:
    """Return values in the units of `Drawn.heights`, NaN where they cannot be drawn."""
    value = np.asarray(value, dtype=np.float64)
    usable = np.isfinite(value) & ((value > 0) | (scale == "linear"))
    value = np.where(usable, value, np.nan)
    return np.log10(value) if scale == "log" else value


def find_levels(heights: Array, metric: str, scale: str, ceiling: float | None = None, n: int = 18) -> Levels:
    """Choose round contour levels between the lowest and the highest height.

    Args:
        heights: Any shape, NaN where there is a gap.
        metric: Whose values they are.
        scale: `"linear"` or `"log"`.
        ceiling: Where the view ends, in the metric's unit (percent for accuracies).
        n: At most this many.

    Raises:
        ValueError: The ceiling is not above the lowest value.
    """
    finite = heights[np.isfinite(heights)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if ceiling is not None:
        ceiling = real_number("ceiling", ceiling)
        top = float(to_height(ceiling, scale))
        if finite.size and not top > low:
            lowest = 10**low if scale == "log" else low
            raise ValueError(f"ceiling must lie above the lowest {metric}, {lowest:.4g}; got {ceiling:g}")
        high = min(high, top)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # constant up to rounding
        spread = 0.5 if scale == "log" else 0.5 * abs(low) or 0.5
        low, high = low - spread, high + spread
    step = _round_step((high - low) / n)
    values = step * np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Levels(values, step, _texts(10**values if scale == "log" else values), low, high)


def ceiling_note(top: float, metric: str, ceiling: float | None) -> tuple[str, ...]:
    """Say that the view ends at the ceiling, if values lie above it."""
    if ceiling is None or not top > ceiling:
        return ()
    unit = " %" if is_share(metric) else ""
    return (f"view ends at {number(ceiling)}{unit}; highest value {number(top)}{unit}",)


def number(value: float, digits: int = 3) -> str:
    """Return a number as short text with so many significant digits: 0.02, 1250, 3.1e6."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def _texts(values: Array) -> tuple[str, ...]:
    """Return the numbers with as many digits as it takes to tell them apart."""
    for digits in range(2, 17):
        texts = tuple(number(value, digits) for value in values)
        if len(set(texts)) == len(texts) and (digits > 2 or np.allclose([float(t) for t in texts], values, 0.02)):
            break
    return texts
