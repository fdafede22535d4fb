"""The contours of a surface of two axes."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.grid import Drawn, Levels, ceiling_note, drawn, find_levels
from landscape.figures.marks import Marks, find_marks, point_traces, run_traces
from landscape.figures.style import (
    axis_labels,
    axis_range,
    color_scale,
    metric_label,
    metric_title,
    new_figure,
    require_dimension,
    same_unit,
)
from landscape.surface import Surface


class _ContourInfo(NamedTuple):
    drawn: Drawn
    levels: Levels
    marks: Marks
    labels: list[str]
    notes: tuple[str, ...]


def plot_contour(
    surface: Surface,
    metric: str = "loss",
    scale: str = "linear",
    trajectories: bool = True,
    ceiling: float | None = None,
) -> go.Figure:
    """Draw filled contours with labelled lines, the trained network, and training runs.

    The lowest grid point is marked, too; it is a minimum of nothing when it lies on the border, and the legend says so
    then. Both axes have the same scale where their unit is the same (principal components). Points that are not finite
    or not computed are gaps.

    Args:
        surface: Of two axes, finished or not.
        metric: A key of its values; accuracies are shown in percent.
        scale: `"linear"`, or `"log"`: levels evenly spaced in the logarithm, labelled with the values themselves.
        trajectories: Whether the projected training runs are drawn.
        ceiling: All above has one color; in the metric's unit. The data stay as they are.

    Raises:
        ValueError: Not two axes; unknown metric or scale; ceiling below the lowest value.

    Example:
        >>> plot_contour(Surface.load("plane.h5"), scale="log").show()  # doctest: +SKIP
    """
    require_dimension(surface, 2)
    return _contour(surface, metric, _contour_info(surface, metric, scale, trajectories, ceiling))


def _contour_info(surface: Surface, metric: str, scale: str, trajectories: bool, ceiling: float | None) -> _ContourInfo:
    shown = drawn(surface, metric, scale)
    marks = find_marks(surface, metric, trajectories)
    finite = shown.values[np.isfinite(shown.values)]
    return _ContourInfo(
        drawn=shown,
        levels=find_levels(shown.heights, metric, scale, ceiling),
        marks=marks,
        labels=axis_labels(surface),
        notes=(*shown.notes, *ceiling_note(finite.max(initial=-np.inf), metric, ceiling), *marks.notes),
    )


def _contour(surface: Surface, metric: str, info: _ContourInfo) -> go.Figure:
    figure = new_figure(metric_title(metric), info.notes)
    figure.add_trace(contour_trace(info.drawn, info.levels, metric, info.labels))
    figure.add_traces(run_traces(surface, info.marks))
    figure.add_traces(point_traces(surface, info.marks, metric))
    for update, axis, label in zip(
        (figure.update_xaxes, figure.update_yaxes), surface.axes.values(), info.labels, strict=True
    ):
        update(title_text=label, range=axis_range(axis), constrain="domain", showgrid=False)
    if same_unit(surface):
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def contour_trace(shown: Drawn, levels: Levels, metric: str, labels: list[str]) -> go.Contour:
    """Return the filled contours; here values `[nx, ny]` become plotly's `[ny, nx]`."""
    return go.Contour(
        x=shown.axes[0],
        y=shown.axes[1],
        z=shown.heights.T,
        customdata=shown.values.T,
        zmin=levels.low,
        zmax=levels.high,
        colorscale=color_scale(metric),
        contours={
            "start": levels.values[0],
            "end": levels.values[-1],
            "size": levels.step,
            "showlabels": True,
            "labelfont": {"size": 12, "color": "white", "shadow": "0 0 3px black, 0 0 3px black"},
        },
        line={"color": "rgba(255,255,255,0.65)", "width": 1},
        colorbar=color_bar(levels, metric),
        hovertemplate=f"{labels[0]}: %{{x:.3g}}<br>{labels[1]}: %{{y:.3g}}"
        f"<br>{metric_label(metric)}: %{{customdata:.4g}}<extra></extra>",
        name=metric_label(metric),
        showlegend=False,
    )


def color_bar(levels: Levels, metric: str) -> dict:
    """Return a color bar with a tick at every level; plotly labels the contour lines with its texts, too."""
    return {
        "title": {"text": metric_label(metric), "side": "right"},
        "tickvals": levels.values,
        "ticktext": levels.text,
        "tickfont": {"size": 12},
        "thickness": 16,
        "outlinewidth": 0,
    }
