"""Surfaces of two axes side by side, on one scale."""

import math
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.figures.contour import color_bar, contour_trace
from landscape.figures.grid import Drawn, Levels, ceiling_note, drawn, find_levels
from landscape.figures.marks import Marks, find_marks, point_traces, run_traces
from landscape.figures.style import (
    axis_labels,
    axis_range,
    color_scale,
    escape,
    metric_title,
    new_figure,
    require_dimension,
    same_unit,
)
from landscape.surface import Surface


class _ComparisonInfo(NamedTuple):
    drawn: dict[str, Drawn]
    marks: dict[str, Marks]
    levels: Levels
    notes: tuple[str, ...]


def plot_comparison(
    surfaces: Mapping[str, Surface],
    metric: str = "loss",
    scale: str = "linear",
    trajectories: bool = True,
    ceiling: float | None = None,
) -> go.Figure:
    """Draw the contours of several surfaces side by side, with the same levels and colors.

    Args:
        surfaces: Of two axes, by name; at most three stand in a row.
        metric: A key of their values.
        scale: `"linear"` or `"log"`.
        trajectories: Whether the projected training runs are drawn.
        ceiling: All above has one color; in the metric's unit.

    Raises:
        ValueError: No surface, not two axes; unknown metric or scale; ceiling below the lowest value.

    Example:
        >>> plot_comparison({"with skips": a, "without": b}, scale="log").show()  # doctest: +SKIP
    """
    info = _comparison_info(surfaces, metric, scale, trajectories, ceiling)
    n_columns = min(3, len(surfaces))
    labels = {name: axis_labels(surface) for name, surface in surfaces.items()}
    shared = len({tuple(both) for both in labels.values()}) == 1
    panels = make_subplots(
        rows=math.ceil(len(surfaces) / n_columns),
        cols=n_columns,
        subplot_titles=[escape(name) for name in surfaces],
        horizontal_spacing=0.09,
        vertical_spacing=0.16,
    )
    figure = new_figure(metric_title(metric), info.notes, panels)
    in_legend: set[str] = set()
    for i, (name, surface) in enumerate(surfaces.items()):
        place = {"row": 1 + i // n_columns, "col": 1 + i % n_columns}
        contours = contour_trace(info.drawn[name], info.levels, metric, labels[name])
        contours.update(coloraxis="coloraxis", colorbar=None, colorscale=None, zmin=None, zmax=None)
        figure.add_trace(contours, **place)
        marks = info.marks[name]
        for trace in run_traces(surface, marks) + point_traces(surface, marks, metric):
            if trace.name in in_legend:
                trace.showlegend = False
            elif trace.name:
                in_legend.add(trace.name)
            figure.add_trace(trace, **place)
        x, y = surface.axes.values()
        for update, axis, label in zip((figure.update_xaxes, figure.update_yaxes), (x, y), labels[name], strict=True):
            update(range=axis_range(axis), constrain="domain", showgrid=False, **place)
            if update == figure.update_xaxes or not shared or place["col"] == 1:
                text = "<br>".join(textwrap.wrap(label, 24, break_long_words=False))
                update(title={"text": text, "font": {"size": 13}}, **place)
        if same_unit(surface):
            anchor = next(figure.select_yaxes(**place)).anchor
            figure.update_yaxes(scaleanchor=anchor, scaleratio=1, **place)
    figure.update_layout(
        coloraxis={
            "cmin": info.levels.low,
            "cmax": info.levels.high,
            "colorscale": color_scale(metric),
            "colorbar": color_bar(info.levels, metric),
        },
        margin={"t": figure.layout.margin.t + 24},
    )
    return figure


def _comparison_info(
    surfaces: Mapping[str, Surface], metric: str, scale: str, trajectories: bool, ceiling: float | None
) -> _ComparisonInfo:
    if not surfaces:
        raise ValueError("give at least one surface")
    for surface in surfaces.values():
        require_dimension(surface, 2)
    shown = {name: drawn(surface, metric, scale) for name, surface in surfaces.items()}
    marks = {name: find_marks(surface, metric, trajectories) for name, surface in surfaces.items()}
    heights = np.concatenate([one.heights.ravel() for one in shown.values()])
    values = np.concatenate([one.values.ravel() for one in shown.values()])
    notes = ["log scale"] if scale == "log" else []
    for name in surfaces:
        notes += [f"{name}: {note}" for note in (*shown[name].notes, *marks[name].notes) if note != "log scale"]
    top = values[np.isfinite(values)].max(initial=-np.inf)
    return _ComparisonInfo(
        drawn=shown,
        marks=marks,
        levels=find_levels(heights, metric, scale, ceiling),
        notes=(*notes, *ceiling_note(top, metric, ceiling)),
    )
