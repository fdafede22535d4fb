"""What is drawn on top of a surface: training runs, the trained network, the lowest grid point."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.grid import number
from landscape.figures.style import INK, RUN_COLORS, axis_labels, escape, metric_label, unit_factor
from landscape.sanity import border_sides
from landscape.surface import ProjectedTrajectory, Surface, lowest_point

Array = np.ndarray


class Marks(NamedTuple):
    """Points and lines on a surface.

    Attributes:
        runs: Trajectories by name.
        origin: `[k]` coordinates of the trained network: zeros, or None where the grid does not reach it.
        lowest: `[k]` coordinates of the lowest grid point, if there is a finite one.
        lowest_value: Its value, in the unit stored.
        lowest_label: What it is called in the legend.
        notes: What the figure must say about them.
    """

    runs: Mapping[str, ProjectedTrajectory]
    origin: Array | None
    lowest: Array | None
    lowest_value: float
    lowest_label: str
    notes: tuple[str, ...]


def find_marks(surface: Surface, metric: str, trajectories: bool = True) -> Marks:
    """Gather what is marked on a surface.

    The lowest grid point is marked for losses only; where it lies on the border of the grid its label says so, since
    it is then no minimum of the surface.
    """
    axes = list(surface.axes.values())
    origin = np.zeros(len(axes))
    found = lowest_point(surface, metric) if metric.endswith("loss") else None
    lowest, value, label = None, np.nan, ""
    if found is not None:
        index, value = found
        lowest = np.array([axis[i] for axis, i in zip(axes, index, strict=True)])
        label = "lowest grid point" + (" (on the border)" if border_sides(surface, index) else "")
    runs = surface.trajectories if trajectories else {}
    notes = []
    for name, run in runs.items():
        outside = int((~inside(surface, run.coordinates)).sum())
        if outside:
            of = f" of {name}" if len(runs) > 1 else ""
            notes.append(f"{outside} of {len(run.step)} checkpoints{of} lie outside the grid")
    return Marks(runs, origin if inside(surface, origin) else None, lowest, value, label, tuple(notes))


def inside(surface: Surface, coordinates: Array) -> Array:
    """Return which points `[..., k]` lie within the grid."""
    low, high = np.array([(axis[0], axis[-1]) for axis in surface.axes.values()]).T
    return ((coordinates >= low) & (coordinates <= high)).all(axis=-1)


def run_colors(runs: Mapping[str, ProjectedTrajectory]) -> dict[str, str]:
    """Return a color for each run."""
    return {name: RUN_COLORS[i % len(RUN_COLORS)] for i, name in enumerate(runs)}


def run_hover(surface: Surface, name: str, run: ProjectedTrajectory) -> tuple[Array, str]:
    """Return what a checkpoint of a run shows under the pointer.

    Returns:
        `customdata` `[t, 4 + k]`: step, loss, loss on the slice, distance, coordinates; and the template for it.
    """
    data = np.column_stack([run.step, run.loss, run.loss_on_slice, run.distance, run.coordinates])
    lines = [
        f"<b>{escape(name)}</b>, step %{{customdata[0]:,d}}",
        "loss %{customdata[1]:.4g}",
        "loss on the slice %{customdata[2]:.4g}",
        "distance from the slice %{customdata[3]:.3g}",
        *(f"{label}: %{{customdata[{4 + i}]:.3g}}" for i, label in enumerate(axis_labels(surface))),
    ]
    return data, "<br>".join(lines) + "<extra></extra>"


def run_traces(
    surface: Surface, marks: Marks, heights: Mapping[str, Array] | None = None
) -> list[go.Scatter | go.Scatter3d]:
    """Return the runs as lines, with their start and end marked, in 2 or 3 dimensions.

    Args:
        surface: For the labels.
        marks: Whose runs are drawn.
        heights: `[t]` third coordinate by name, for runs on a surface of two axes.
    """
    traces = []
    for name, color in run_colors(marks.runs).items():
        run = marks.runs[name]
        columns = [*run.coordinates.T, *([] if heights is None else [heights[name]])]
        flat = len(columns) == 2
        if not flat:  # nothing clips lines in three dimensions
            columns = [np.where(inside(surface, run.coordinates), column, np.nan) for column in columns]
        point = go.Scatter if flat else go.Scatter3d
        place = dict(zip("xyz", columns, strict=False))
        data, template = run_hover(surface, name, run)
        if flat:  # a white edge sets the line off from any color below it
            edge = {"color": "white", "width": 6}
            traces.append(point(**place, mode="lines", line=edge, hoverinfo="skip", showlegend=False, legendgroup=name))
        traces.append(
            point(
                **place,
                mode="lines+markers" if len(run.step) <= 100 else "lines",
                line={"color": color, "width": 3 if flat else 7},
                marker={"color": color, "size": 5 if flat else 3},
                customdata=data,
                hovertemplate=template,
                name=escape(name),
                legendgroup=name,
            )
        )
        for which, symbol, fill, rim in ((0, "circle", "white", color), (-1, "square", color, "white")):
            traces.append(
                point(
                    **{axis: column[[which]] for axis, column in place.items()},
                    mode="markers",
                    marker=_marker(symbol, fill, 12, rim, flat),
                    customdata=data[[which]],
                    hovertemplate=template,
                    showlegend=False,
                    legendgroup=name,
                )
            )
    if traces:  # the legend says which marker is which, once for all runs
        for label, symbol, fill in (("start", "circle", "white"), ("end", "square", "#555555")):
            marker = _marker(symbol, fill, 11, "#555555", flat)
            nowhere = {axis: [None] for axis in ("xy" if flat else "xyz")}
            traces.append(point(**nowhere, mode="markers", marker=marker, hoverinfo="skip", name=label))
    return traces


def point_traces(
    surface: Surface, marks: Marks, metric: str, heights: tuple[float, float] | None = None
) -> list[go.Scatter | go.Scatter3d]:
    """Return the trained network and the lowest grid point as markers, in 2 or 3 dimensions.

    Args:
        surface: For the labels.
        marks: What is marked.
        metric: Whose lowest point it is.
        heights: Third coordinate of origin and lowest point, on a surface of two axes.
    """
    value = number(marks.lowest_value * unit_factor(metric), 4)
    entries = (
        (marks.origin, "trained network", "cross", "white", 18, ""),
        (marks.lowest, marks.lowest_label, "diamond", "#F0E442", 9, f"<br>{metric_label(metric)}: {value}"),
    )
    traces = []
    for i, (place, name, symbol, color, size, extra) in enumerate(entries):
        if place is None:
            continue
        columns = [*place, *([] if heights is None else [heights[i]])]
        flat = len(columns) == 2
        point = go.Scatter if flat else go.Scatter3d
        where = "".join(f"<br>{t}: {number(c)}" for t, c in zip(axis_labels(surface), place, strict=True))
        traces.append(
            point(
                **{axis: [c] for axis, c in zip("xyz", columns, strict=False)},
                mode="markers",
                marker=_marker(symbol, color, size, INK, flat),
                name=name,
                hovertemplate=f"<b>{name}</b>{where}{extra}<extra></extra>",
            )
        )
    return traces


def _marker(symbol: str, color: str, size: float, edge: str, flat: bool) -> dict:
    return {
        "symbol": symbol,
        "color": color,
        "size": size if flat else size / 1.6,
        "line": {"color": edge, "width": 2 if flat else 1},
    }
