"""The inside of a volume: nested surfaces of equal value."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from landscape.figures.grid import Drawn, drawn, number
from landscape.figures.marks import Marks, find_marks, point_traces, run_traces
from landscape.figures.style import (
    INK,
    axis_labels,
    axis_range,
    color_scale,
    is_share,
    metric_label,
    metric_title,
    new_figure,
    relative_widths,
    require_dimension,
    set_scene,
)
from landscape.surface import Surface

QUANTILES = (0.02, 0.1, 0.3)
_OPACITIES = (0.7, 0.25, 0.13)


class _VolumeInfo(NamedTuple):
    drawn: Drawn
    levels: tuple[float, ...]
    names: tuple[str, ...]
    marks: Marks
    labels: list[str]


def plot_volume(surface: Surface, metric: str = "loss", trajectories: bool = True) -> go.Figure:
    """Draw nested surfaces of equal value around the best of a volume.

    The surfaces enclose the best 2 %, 10 % and 30 % of the grid points: the lowest losses, or the highest accuracies.
    A click on the legend hides one.

    Args:
        surface: Of three axes, finished or not.
        metric: A key of its values; accuracies are shown in percent.
        trajectories: Whether the projected training runs are drawn.

    Raises:
        ValueError: Not three axes; unknown metric.

    Example:
        >>> plot_volume(Surface.load("volume.h5")).show()  # doctest: +SKIP
    """
    require_dimension(surface, 3)
    info = _volume_info(surface, metric, trajectories)
    figure = new_figure(metric_title(metric), (*info.drawn.notes, *info.marks.notes))
    # [nx, ny, nz] and coordinates flattened alike: nothing to transpose
    x, y, z = (c.ravel() for c in np.meshgrid(*info.drawn.axes, indexing="ij"))
    x, y, z, values = (c.astype(np.float32) for c in (x, y, z, info.drawn.values.ravel()))  # halves the file
    colors = sample_colorscale(color_scale(metric), [0.8, 0.5, 0.2] if is_share(metric) else [0.0, 0.45, 0.85])
    for level, name, opacity, color in zip(info.levels, info.names, _OPACITIES, colors, strict=False):
        figure.add_trace(
            go.Isosurface(
                x=x,
                y=y,
                z=z,
                value=values,
                isomin=level,
                isomax=level,
                surface={"count": 1},
                caps={f"{axis}_show": False for axis in "xyz"},
                colorscale=[[0, color], [1, color]],
                showscale=False,
                opacity=opacity,
                legendgroup=name,
                hovertemplate=f"{name}<extra></extra>",
            )
        )
        seen = 1 - (1 - opacity) ** 2  # one looks through the front and the back
        marker = {"symbol": "square", "color": color, "opacity": seen}
        nowhere = {axis: [None] for axis in "xyz"}
        figure.add_trace(go.Scatter3d(**nowhere, mode="markers", marker=marker, name=name, legendgroup=name))
    if info.marks.origin is not None:
        figure.add_trace(_cross_hair(surface))
    figure.add_traces(run_traces(surface, info.marks))
    figure.add_traces(point_traces(surface, info.marks, metric))
    axes = [
        {"title": {"text": label}, "range": axis_range(axis), "nticks": 6}
        for label, axis in zip(info.labels, surface.axes.values(), strict=True)
    ]
    set_scene(figure, axes, relative_widths(surface), (1, -1))
    return figure


def _cross_hair(surface: Surface) -> go.Scatter3d:
    """Return lines along the axes through the trained network, which the surfaces would hide."""
    ends = [[axis[0], axis[-1]] for axis in surface.axes.values()]
    lines = {
        name: [value for i in range(3) for value in ([*ends[i], None] if i == own else [0.0, 0.0, None])]
        for own, name in enumerate("xyz")
    }
    return go.Scatter3d(**lines, mode="lines", line={"color": INK, "width": 2}, hoverinfo="skip", showlegend=False)


def _volume_info(surface: Surface, metric: str, trajectories: bool) -> _VolumeInfo:
    shown = drawn(surface, metric)
    finite = shown.values[np.isfinite(shown.values)]
    quantiles = [1 - q for q in QUANTILES] if is_share(metric) else list(QUANTILES)
    levels = np.quantile(finite, quantiles) if finite.size else np.empty(0)
    keep = (levels > finite.min()) & (levels < finite.max()) if finite.size else []
    return _VolumeInfo(
        drawn=shown,
        levels=tuple(levels[keep].tolist()) if finite.size else (),
        names=tuple(
            f"{metric_label(metric)} = {number(level)}" for level, inside in zip(levels, keep, strict=True) if inside
        ),
        marks=find_marks(surface, metric, trajectories),
        labels=axis_labels(surface),
    )
