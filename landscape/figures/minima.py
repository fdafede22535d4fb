"""Minima, saddles and basins on the surface itself."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.basins import (
    MOST_NUMBERED,
    Basins,
    Points,
    area_colors,
    critical_points,
    find_basins,
    point_marks,
    tint,
)
from landscape.figures.contour import plot_contour
from landscape.figures.grid import to_height
from landscape.figures.line import plot_line
from landscape.figures.style import (
    INK,
    axis_range,
    metric_label,
    metric_title,
    new_figure,
    require_dimension,
    unit_factor,
)
from landscape.figures.surface3d import plot_surface
from landscape.figures.volume import plot_volume
from landscape.surface import Surface
from landscape.topology import OUTSIDE, Topology, analyze

Array = np.ndarray
_MOST_CELLS = 40_000  # of a colored 3-D surface: every cell is two triangles


class _MinimaInfo(NamedTuple):
    metric: str
    basins: Basins
    points: dict[str, Points]
    ends: Array  # [n] value at which each minimum merges, in the unit shown


def plot_minima(
    surface: Surface, topology: Topology | None = None, scale: str = "linear", ceiling: float | None = None
) -> go.Figure:
    """Draw the minima that count, with their basins and saddles, on a line, on contours or in a volume.

    Basins of minima that do not count are part of the ones they merge into. What belongs to none is gray: it leads out
    of the grid, or into a dent that merges with what does.

    Args:
        surface: Of one, two or three axes.
        topology: What `analyze` found on it. Default: its result for the loss.
        scale: Of the values, `"linear"` or `"log"`; a volume has none.
        ceiling: Where the contours end, in the metric's unit.

    Raises:
        ValueError: More than three axes, or the topology is not of this grid; unknown scale.

    Example:
        >>> plot_minima(Surface.load("plane.h5")).show()  # doctest: +SKIP
    """
    info = _minima_info(surface, topology)
    k = len(surface.axes)
    if k == 1:
        return _on_line(surface, info, scale)
    return _in_volume(surface, info) if k == 3 else _on_contours(surface, info, scale, ceiling)


def plot_basins(
    surface: Surface, topology: Topology | None = None, scale: str = "linear", ceiling: float | None = None
) -> go.Figure:
    """Draw the surface in 3-D, each basin in a color of its own, with minima and saddles on it.

    Large grids are drawn on every second, third, ... point; the topology is that of all.

    Args:
        surface: Of two axes.
        topology: What `analyze` found on it. Default: its result for the loss.
        scale: `"linear"` or `"log"`.
        ceiling: Where the view ends, in the metric's unit.

    Raises:
        ValueError: Not two axes, or the topology is not of this grid; unknown scale; ceiling below the lowest value.
    """
    require_dimension(surface, 2)
    info = _minima_info(surface, topology)
    figure = plot_surface(surface, info.metric, scale, trajectories=False, ceiling=ceiling)
    _retitle(figure, info)
    relief = figure.data[0]
    high = relief.cmax
    relief.update(hidesurface=True, showscale=False, hoverinfo="skip", hovertemplate=None)
    relief.contours.z.update(color="rgba(0,0,0,0.35)", width=1)
    figure.data = [relief]
    figure.add_trace(_mesh(surface, info, scale))
    lift = 0.02 * (high - relief.cmin)
    heights = {}
    for kind, points in info.points.items():  # the tops of hills are seen without a mark
        height = to_height(points.values, scale)
        heights[kind] = np.where((height > high) | (kind == "maximum"), np.nan, height + lift)
    figure.add_traces(_pins(info, heights, scale, high + lift))
    figure.add_traces(point_marks(info.points, info.basins, heights))
    eye = figure.layout.scene.camera.eye
    figure.update_layout(scene_camera_eye={"x": 0.8 * eye.x, "y": 0.8 * eye.y, "z": 2 * eye.z})  # into the basins
    return figure


def _minima_info(surface: Surface, topology: Topology | None) -> _MinimaInfo:
    topology = analyze(surface) if topology is None else topology
    if topology.values.shape != surface.shape:
        raise ValueError(f"the topology is of a grid {topology.values.shape}, the surface has {surface.shape}")
    if topology.metric not in surface.values:
        raise ValueError(f"the topology is of {topology.metric!r}; the surface has {', '.join(surface.values)}")
    basins = find_basins(topology)
    ends = topology.minima.merge_value[basins.shown] * unit_factor(topology.metric)
    return _MinimaInfo(topology.metric, basins, critical_points(surface, topology, basins), ends)


def _retitle(figure: go.Figure, info: _MinimaInfo) -> None:
    """Say what is counted, above the notes of the figure that lies below."""
    notes = figure.layout.title.subtitle.text
    top = figure.layout.margin.t
    new_figure(f"local minima of the {metric_title(info.metric)} surface", [info.basins.note], figure)
    if notes:
        lines = f"{figure.layout.title.subtitle.text}<br>{notes}"
        figure.update_layout(title={"subtitle": {"text": lines}})
    figure.update_layout(margin={"t": top + 17 * figure.layout.title.subtitle.text.count("<br>") + 17})


def _on_line(surface: Surface, info: _MinimaInfo, scale: str) -> go.Figure:
    figure = plot_line(surface, [info.metric], scale)
    _retitle(figure, info)
    figure.data[0].update(line={"color": INK}, name=metric_label(info.metric))
    (axis,) = surface.axes.values()
    middles = np.concatenate([axis[:1], (axis[1:] + axis[:-1]) / 2, axis[-1:]])
    labels, colors = info.basins.labels, area_colors(info.basins)
    starts = np.flatnonzero(np.diff(labels, prepend=np.iinfo(int).min))
    for start, end in zip(starts, [*starts[1:], len(axis)], strict=True):
        if labels[start] >= OUTSIDE:
            color = colors[labels[start] + 1]
            figure.add_vrect(middles[start], middles[end], fillcolor=color, line_width=0, layer="below")
    heights = {kind: points.values for kind, points in info.points.items()}
    figure.add_traces(point_marks(info.points, info.basins, heights))
    figure.update_xaxes(showgrid=False, range=axis_range(axis))
    return figure


def _on_contours(surface: Surface, info: _MinimaInfo, scale: str, ceiling: float | None) -> go.Figure:
    figure = plot_contour(surface, info.metric, scale, trajectories=False, ceiling=ceiling)
    _retitle(figure, info)
    contours = figure.data[0]
    dark = "rgb(90,90,90)"
    contours.update(colorscale=[[0, dark], [1, dark]], line={"width": 1})
    contours.contours.update(
        coloring="lines",
        showlabels=len(info.basins.shown) <= MOST_NUMBERED,
        labelfont={"size": 11, "color": "#333333", "shadow": "none"},
    )
    # the labels of the lines are taken from a color bar, which has nothing else to say
    contours.colorbar.update(
        title={"text": ""}, thickness=1, x=0.5, len=0.1, tickfont={"size": 1, "color": "rgba(0,0,0,0)"}
    )
    colors = area_colors(info.basins)
    x, y = surface.axes.values()
    areas = go.Heatmap(
        x=x,
        y=y,
        z=np.where(info.basins.labels >= OUTSIDE, info.basins.labels, np.nan).T,
        zmin=OUTSIDE - 0.5,
        zmax=len(colors) - 1.5,
        colorscale=_steps(colors),
        showscale=False,
        hoverinfo="skip",
    )
    kept = [trace for trace in figure.data[1:] if trace.name == "trained network"]
    figure.data = [contours]
    figure.add_trace(areas)
    figure.data = figure.data[::-1]
    figure.add_traces([*point_marks(info.points, info.basins), *kept])
    if (info.basins.labels == OUTSIDE).any():
        marker = {"symbol": "square", "color": colors[0], "size": 14, "line": {"color": "#999999", "width": 1}}
        figure.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name="of no minimum that counts")
        )
    return figure


def _in_volume(surface: Surface, info: _MinimaInfo) -> go.Figure:
    figure = plot_volume(surface, info.metric, trajectories=False)
    _retitle(figure, info)
    figure.data = [trace for trace in figure.data if "lowest" not in (trace.name or "")]
    figure.update_traces(opacity=0.12, selector={"type": "isosurface"})
    figure.add_traces(point_marks(info.points, info.basins))
    return figure


def _pins(info: _MinimaInfo, heights: dict[str, Array], scale: str, high: float) -> list[go.Scatter3d]:
    """Return a line up from each minimum, with its number above the pass, so that hills in front do not hide it."""
    feet = heights["minimum"]
    if not np.isfinite(feet).any() or len(feet) > MOST_NUMBERED:
        return []
    heads = np.fmin(to_height(info.ends, scale), high)
    heads = np.where(np.isfinite(heads), heads, high) + 0.06 * (high - np.nanmin(feet))
    x, y = info.points["minimum"].coordinates.T
    return [
        go.Scatter3d(
            x=np.stack([x, x, np.full(len(x), np.nan)], axis=1).ravel(),
            y=np.stack([y, y, np.full(len(y), np.nan)], axis=1).ravel(),
            z=np.stack([feet, heads, np.full(len(x), np.nan)], axis=1).ravel(),
            mode="lines",
            line={"color": INK, "width": 3},
            hoverinfo="skip",
            showlegend=False,
        ),
        go.Scatter3d(
            x=x,
            y=y,
            z=heads,
            mode="text",
            text=[f"<b>{number}</b>" for number in info.basins.numbers],
            textposition="top center",
            textfont={"color": INK, "size": 17},
            hoverinfo="skip",
            showlegend=False,
        ),
    ]


def _steps(colors: list[str]) -> list[list]:
    """Return a color scale of equal steps without transitions."""
    n = len(colors)
    return [[(i + end) / n, color] for i, color in enumerate(colors) for end in (0, 1)]


def _mesh(surface: Surface, info: _MinimaInfo, scale: str) -> go.Mesh3d:
    """Return the surface as triangles whose corners have the colors of their basins."""
    step = max(1, int(np.ceil(np.sqrt(surface.done.size / _MOST_CELLS))))
    rows = [np.unique(np.append(np.arange(0, n, step), n - 1)) for n in surface.shape]
    labels = info.basins.labels[np.ix_(*rows)]
    z = to_height(surface.metric(info.metric)[np.ix_(*rows)] * unit_factor(info.metric), scale)
    x, y = np.meshgrid(*(axis[r] for axis, r in zip(surface.axes.values(), rows, strict=True)), indexing="ij")
    corner = np.arange(z.size).reshape(z.shape)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], axis=-1).reshape(-1, 3), np.stack([a, c, d], axis=-1).reshape(-1, 3)])
    faces = faces[np.isfinite(z.ravel()[faces]).all(axis=1)]
    palette = np.array(["#dcdcdc", *(tint(color, 0.75) for color in info.basins.colors), "#dcdcdc"])
    return go.Mesh3d(
        x=x.ravel(),
        y=y.ravel(),
        z=np.nan_to_num(z.ravel(), nan=float(np.nanmin(z)) if np.isfinite(z).any() else 0.0),
        i=faces[:, 0],
        j=faces[:, 1],
        k=faces[:, 2],
        vertexcolor=palette[np.maximum(labels.ravel(), OUTSIDE) + 1],
        lighting={"ambient": 0.8, "diffuse": 0.4, "specular": 0.02, "roughness": 0.9},
        hoverinfo="skip",
        showlegend=False,
    )
