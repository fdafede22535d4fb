"""Stored results as plotly figures, one figure per file."""

import plotly.graph_objects as go

from landscape.arguments import expect
from landscape.figures.barrier import plot_barrier
from landscape.figures.basin_descents import plot_basin_descents
from landscape.figures.comparison import plot_comparison
from landscape.figures.computational_graph import plot_computational_graph, plot_local_gradients
from landscape.figures.connections import plot_connections
from landscape.figures.contour import plot_contour
from landscape.figures.count_tolerance import plot_count_tolerance
from landscape.figures.descent import plot_descent
from landscape.figures.distributions import plot_distributions
from landscape.figures.eigenvalues import plot_eigenvalues
from landscape.figures.history import plot_history
from landscape.figures.image import browser_missing, save_figure, save_figures
from landscape.figures.line import plot_line
from landscape.figures.loss_curves import plot_loss_curves
from landscape.figures.matrix import plot_matrix
from landscape.figures.merge_tree import plot_merge_tree
from landscape.figures.minima import plot_basins, plot_minima
from landscape.figures.minima_count import plot_minima_count
from landscape.figures.pairwise import plot_pairwise
from landscape.figures.persistence import plot_persistence
from landscape.figures.rarefaction import plot_rarefaction
from landscape.figures.shared_minima import plot_shared_minima
from landscape.figures.surface3d import plot_surface
from landscape.figures.trajectory import plot_trajectory
from landscape.figures.volume import plot_volume
from landscape.surface import Surface

__all__ = [
    "browser_missing",
    "figures_of",
    "plot",
    "plot_barrier",
    "plot_basin_descents",
    "plot_basins",
    "plot_comparison",
    "plot_computational_graph",
    "plot_connections",
    "plot_contour",
    "plot_count_tolerance",
    "plot_descent",
    "plot_distributions",
    "plot_eigenvalues",
    "plot_history",
    "plot_line",
    "plot_local_gradients",
    "plot_loss_curves",
    "plot_matrix",
    "plot_merge_tree",
    "plot_minima",
    "plot_minima_count",
    "plot_pairwise",
    "plot_persistence",
    "plot_rarefaction",
    "plot_shared_minima",
    "plot_surface",
    "plot_trajectory",
    "plot_volume",
    "save_figure",
    "save_figures",
]


def plot(surface: Surface, metric: str = "loss", scale: str = "linear") -> go.Figure:
    """Draw a surface in the way that fits its number of axes: a line, contours, or nested surfaces.

    Args:
        surface: Of one, two or three axes.
        metric: A key of its values. A line shows the loss together with all accuracies.
        scale: `"linear"` or `"log"`; a volume has none, since its levels are quantiles.

    Raises:
        ValueError: More than three axes; unknown metric or scale.

    Example:
        >>> plot(Surface.load("plane.h5")).show()  # doctest: +SKIP
    """
    expect("surface", surface, Surface, "a Surface (Surface.load reads its file)")
    k = len(surface.axes)
    if k == 1:
        return plot_line(surface, None if metric == "loss" else [metric], scale)
    return plot_volume(surface, metric) if k == 3 else plot_contour(surface, metric, scale)


def figures_of(
    surface: Surface, metric: str | None = None, *, scale: str = "linear", ceiling: float | None = None
) -> dict[str, go.Figure]:
    """Draw every figure that makes sense for a surface.

    Args:
        surface: Finished or not.
        metric: A key of its values. Default: the loss, and the accuracy where there is one.
        scale: Of the metric, `"linear"` or `"log"`; accuracies that come along are linear.
        ceiling: Where the view of contours and 3-D surfaces ends, in the metric's unit.

    Returns:
        Figures by a short name that is good for a file: `"line"`; or `"contour"`, `"surface"`, `"accuracy"`,
        `"descent"`; or `"volume"`; and `"trajectory"` where there is one. None for more than three axes, except
        `"trajectory"`.

    Raises:
        ValueError: Unknown metric or scale; ceiling below the lowest value.
    """
    expect("surface", surface, Surface, "a Surface (Surface.load reads its file)")
    name = metric or next(iter(surface.values))
    k = len(surface.axes)
    figures: dict[str, go.Figure] = {}
    if k == 1:
        figures["line"] = plot_line(surface, None if metric is None else [metric], scale)
    elif k == 2:
        figures["contour"] = plot_contour(surface, name, scale, ceiling=ceiling)
        figures["surface"] = plot_surface(surface, name, scale, ceiling=ceiling)
        if metric is None and "accuracy" in surface.values and name != "accuracy":
            figures["accuracy"] = plot_contour(surface, "accuracy")
        if surface.trajectories:
            figures["descent"] = plot_descent(surface, name, scale, ceiling)
    elif k == 3:
        figures["volume"] = plot_volume(surface, name)
    if surface.trajectories:
        figures["trajectory"] = plot_trajectory(surface)
    return figures
