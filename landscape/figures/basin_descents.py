"""Steepest descents on a surface, each into its minimum."""

import numpy as np
import plotly.graph_objects as go

from landscape.figures.basins import find_basins
from landscape.figures.minima import plot_minima
from landscape.figures.style import INK, require_dimension
from landscape.surface import Surface
from landscape.topology import OUTSIDE, Topology
from landscape.topology.descents import Descents
from landscape.topology.result import coordinates_of


def plot_basin_descents(
    surface: Surface, topology: Topology, descents: Descents, scale: str = "linear", ceiling: float | None = None
) -> go.Figure:
    """Draw descents on the contours, over the basins: each in the color of the minimum it belongs to.

    A descent that stops in a minimum that does not count ends in a ring, and has the color of the one into which that
    merges; gray ones lead out of the grid.

    Args:
        surface: Of two axes.
        topology: What `analyze` found on it.
        descents: What `descend` found on that.
        scale: Of the values, `"linear"` or `"log"`.
        ceiling: Where the contours end, in the metric's unit.

    Raises:
        ValueError: Not two axes, or the topology is not of this grid; unknown scale.
    """
    require_dimension(surface, 2)
    figure = plot_minima(surface, topology, scale, ceiling)
    basins = find_basins(topology)
    colors = dict(enumerate(basins.colors)) | {OUTSIDE: "#777777"}
    traces = []
    for home, color in colors.items():
        paths = [path for path in descents.paths if basins.labels[tuple(path[0])] == home]
        if not paths:
            continue
        # one trace of several lines, parted by NaN
        lines = [np.append(coordinates_of(topology.axes, path), [[np.nan, np.nan]], axis=0) for path in paths]
        x, y = np.concatenate(lines).T
        look = {"color": color, "width": 2.5}
        traces.append(go.Scatter(x=x, y=y, mode="lines", line=look, hoverinfo="skip", showlegend=False))
        x, y = coordinates_of(topology.axes, np.stack([path[0] for path in paths])).T
        look = {"color": color, "size": 8, "line": {"color": INK, "width": 1}}
        traces.append(go.Scatter(x=x, y=y, mode="markers", marker=look, hoverinfo="skip", showlegend=False))
    low = topology.minima
    small = ~topology.counts_as(low) & ~low.on_border
    ends = [path[-1] for path, i in zip(descents.paths, descents.minimum, strict=True) if small[i]]
    if ends:
        x, y = coordinates_of(topology.axes, np.stack(ends)).T
        look = {"symbol": "circle-open", "color": INK, "size": 12, "line": {"width": 2}}
        name = "minimum that does not count"
        traces.append(go.Scatter(x=x, y=y, mode="markers", marker=look, name=name, hoverinfo="skip"))
    look = {"color": "white", "size": 8, "line": {"color": INK, "width": 1}}
    name = "descent from its start"
    traces.append(go.Scatter(x=[None], y=[None], mode="lines+markers", line={"color": INK}, marker=look, name=name))
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    figure.data = [trace for trace in figure.data if trace.type != "scatter"]
    figure.add_traces([*traces, *marks])  # the marks on top
    return figure
