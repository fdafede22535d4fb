"""A surface of two axes in three dimensions."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.contour import color_bar
from landscape.figures.grid import Drawn, Levels, ceiling_note, drawn, find_levels, to_height
from landscape.figures.marks import Marks, find_marks, point_traces, run_traces
from landscape.figures.style import (
    CAMERA_SLOPE,
    axis_labels,
    axis_range,
    color_scale,
    metric_label,
    metric_title,
    new_figure,
    relative_widths,
    require_dimension,
    set_scene,
    unit_factor,
)
from landscape.surface import Surface

Array = np.ndarray
_HEIGHT = 0.65  # of the scene, its width being 1
_LIFT = 0.012  # share of the height by which lines lie above the surface, so as not to sink into it


class _SurfaceInfo(NamedTuple):
    drawn: Drawn
    levels: Levels
    marks: Marks
    run_heights: dict[str, Array]
    labels: list[str]
    notes: tuple[str, ...]


def plot_surface(
    surface: Surface,
    metric: str = "loss",
    scale: str = "linear",
    trajectories: bool = True,
    ceiling: float | None = None,
) -> go.Figure:
    """Draw the surface in 3-D, with contours on it and training runs along it.

    A run is drawn on the surface, at its loss *on the slice*; its own loss shows under the pointer and in
    `plot_trajectory`. For other metrics than the loss runs are left out. Points that are not finite or not computed are
    gaps.

    Args:
        surface: Of two axes, finished or not.
        metric: A key of its values; accuracies are shown in percent.
        scale: `"linear"` or `"log"`.
        trajectories: Whether the projected training runs are drawn.
        ceiling: Where the view ends, in the metric's unit: high peaks are cut off, the data stay as they are.

    Raises:
        ValueError: Not two axes; unknown metric or scale; ceiling below the lowest value.

    Example:
        >>> plot_surface(Surface.load("plane.h5"), ceiling=10).show()  # doctest: +SKIP
    """
    require_dimension(surface, 2)
    info = _surface_info(surface, metric, scale, trajectories, ceiling)
    levels, (x, y) = info.levels, info.drawn.axes
    figure = new_figure(metric_title(metric), info.notes)
    figure.add_trace(
        go.Surface(
            x=x,
            y=y,
            z=info.drawn.heights.T,  # values [nx, ny] become plotly's [ny, nx]
            customdata=info.drawn.values.T,
            cmin=levels.low,
            cmax=levels.high,
            colorscale=color_scale(metric),
            colorbar=color_bar(levels, metric) | {"len": 0.7},
            contours={
                "z": {
                    "show": True,
                    "start": levels.values[0],
                    "end": levels.values[-1],
                    "size": levels.step,
                    "color": "rgba(255,255,255,0.5)",
                    "width": 1,
                    "highlight": False,
                },
                "x": {"highlight": False},
                "y": {"highlight": False},
            },
            lighting={"ambient": 0.85, "diffuse": 0.3, "specular": 0.02, "roughness": 0.9},
            hovertemplate=f"{info.labels[0]}: %{{x:.3g}}<br>{info.labels[1]}: %{{y:.3g}}"
            f"<br>{metric_label(metric)}: %{{customdata:.4g}}<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_traces(run_traces(surface, info.marks, info.run_heights))
    heights = _point_heights(surface, info, metric, scale)
    figure.add_traces(point_traces(surface, info.marks, metric, heights))
    axes = [
        {"title": {"text": label}, "range": axis_range(axis), "nticks": 6}
        for label, axis in zip(info.labels, surface.axes.values(), strict=True)
    ]
    side = _open_side(info.drawn, levels)
    set_scene(figure, [*axes, _z_axis(levels, metric)], [*relative_widths(surface), _HEIGHT], side)
    return figure


def _surface_info(surface: Surface, metric: str, scale: str, trajectories: bool, ceiling: float | None) -> _SurfaceInfo:
    shown = drawn(surface, metric, scale)
    levels = find_levels(shown.heights, metric, scale, ceiling)
    marks = find_marks(surface, metric, trajectories and metric == next(iter(surface.values)))
    lift = _LIFT * (levels.high - levels.low)
    run_heights, run_notes = {}, []
    for name, run in marks.runs.items():
        heights = to_height(run.loss_on_slice, scale)
        above = heights > levels.high
        run_heights[name] = np.where(above, np.nan, heights + lift)
        if above.any():
            run_notes.append(f"{above.sum()} of {len(above)} checkpoints of {name} lie above the view")
    finite = shown.values[np.isfinite(shown.values)]
    return _SurfaceInfo(
        drawn=shown,
        levels=levels,
        marks=marks,
        run_heights=run_heights,
        labels=axis_labels(surface),
        notes=(*shown.notes, *ceiling_note(finite.max(initial=-np.inf), metric, ceiling), *marks.notes, *run_notes),
    )


def _point_heights(surface: Surface, info: _SurfaceInfo, metric: str, scale: str) -> tuple[float, float]:
    """Return the heights of the origin (at the grid point nearest to it) and of the lowest grid point."""
    nearest = tuple(int(np.abs(axis).argmin()) for axis in surface.axes.values())
    lift = 2 * _LIFT * (info.levels.high - info.levels.low)
    origin = to_height(surface.metric(metric)[nearest] * unit_factor(metric), scale)
    lowest = to_height(info.marks.lowest_value * unit_factor(metric), scale)
    return float(origin) + lift, float(lowest) + lift


def _open_side(drawn: Drawn, levels: Levels) -> tuple[int, int]:
    """Return the signs of x and y of the lowest corner, first among those from which the trained network is seen.

    Heights along the line of sight from the origin (or the middle of a grid that does not hold it) to each corner are
    compared with that line.
    """
    if not drawn.heights.size:
        return 1, -1
    scores: dict[tuple[int, int], tuple[bool, float]] = {}
    z = (np.clip(drawn.heights, levels.low, levels.high) - levels.low) / (levels.high - levels.low) * _HEIGHT
    start = [int(np.abs(axis).argmin()) if axis[0] <= 0 <= axis[-1] else len(axis) // 2 for axis in drawn.axes]
    t = np.linspace(0, 1, 50)
    for side in ((1, -1), (-1, -1), (1, 1), (-1, 1)):
        corner = [n - 1 if sign > 0 else 0 for n, sign in zip(z.shape, side, strict=True)]
        rows, columns = (np.rint(a + t * (b - a)).astype(int) for a, b in zip(start, corner, strict=True))
        length = np.hypot(*(t * (b - a) / max(n - 1, 1) for a, b, n in zip(start, corner, z.shape, strict=True)))
        above = z[rows, columns] - z[tuple(start)] - CAMERA_SLOPE * length
        quarter = z[np.ix_(*(np.arange(min(a, b), max(a, b) + 1) for a, b in zip(start, corner, strict=True)))]
        hidden = np.where(np.isfinite(above), above, 0).max(initial=0)
        scores[side] = (bool(hidden > 0.02), float(np.where(np.isfinite(quarter), quarter, 0).mean()))
    return min(scores, key=lambda side: scores[side])


def _z_axis(levels: Levels, metric: str) -> dict:
    margin = 0.02 * (levels.high - levels.low)
    # the axis is shorter than the color bar; multiples of these keep whole decades and round numbers
    every = next(n for n in (1, 2, 4, 8, 16) if len(levels.values) // n <= 5)
    labelled = np.round(levels.values / levels.step) % every == 0
    return {
        "title": {"text": metric_label(metric)},
        "range": [levels.low - margin, levels.high + margin],
        "tickvals": levels.values[labelled],
        "ticktext": [text for text, keep in zip(levels.text, labelled, strict=True) if keep],
    }
