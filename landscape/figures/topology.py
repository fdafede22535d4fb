"""All figures of a topology."""

import plotly.graph_objects as go

from landscape.figures.merge_tree import plot_merge_tree
from landscape.figures.minima import plot_basins, plot_minima
from landscape.figures.minima_count import plot_minima_count
from landscape.figures.persistence import plot_persistence
from landscape.surface import Surface
from landscape.topology import Topology


def topology_figures(
    surface: Surface, topology: Topology, scale: str = "linear", ceiling: float | None = None
) -> dict[str, go.Figure]:
    """Draw every figure that makes sense for what `analyze` found.

    Args:
        surface: Where it was found.
        topology: What was found.
        scale: Of the values, `"linear"` or `"log"`.
        ceiling: Where the view of contours and 3-D surfaces ends, in the metric's unit.

    Returns:
        Figures by a short name that is good for a file: `"minima"` (up to three axes), `"basins"` (two axes),
        `"persistence"`, `"merge_tree"` and `"minima_count"`.

    Raises:
        ValueError: Unknown scale; ceiling below the lowest value.
    """
    figures: dict[str, go.Figure] = {}
    if len(surface.axes) <= 3:
        figures["minima"] = plot_minima(surface, topology, scale, ceiling)
    if len(surface.axes) == 2:
        figures["basins"] = plot_basins(surface, topology, scale, ceiling)
    return figures | {
        "persistence": plot_persistence(topology, scale),
        "merge_tree": plot_merge_tree(topology, scale),
        "minima_count": plot_minima_count(topology),
    }
