"""Barriers and distances between all pairs of networks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from landscape.barriers import Barriers
from landscape.figures.style import escape, new_figure

Array = np.ndarray


class _MatrixInfo(NamedTuple):
    order: Array
    names: list[str]
    panels: dict[str, Array]
    note: str


def plot_matrix(barriers: Barriers, names: Sequence[str] | None = None) -> go.Figure:
    """Draw the barriers and the distances between all pairs of networks side by side.

    Networks are ordered by hierarchical clustering of the barriers (average linkage), so that those in one valley are
    neighbors; by the distances where a barrier is not finite. The diagonal is left out.

    Args:
        barriers: At least two networks.
        names: One per network. Default: their numbers.

    Raises:
        ValueError: Fewer than two networks, or another number of names.

    Example:
        >>> plot_matrix(Barriers.load("barriers.h5")).show()  # doctest: +SKIP
    """
    info = _matrix_info(barriers, names)
    panels = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.17, subplot_titles=[escape(name) for name in info.panels]
    )
    aligned = "hidden units aligned" if barriers.aligned else "hidden units not aligned"
    figure = new_figure(f"paths between {len(info.order)} networks", (aligned, info.note), panels)
    for column, (name, values) in enumerate(info.panels.items(), start=1):
        axis = figure.layout[f"xaxis{column}" if column > 1 else "xaxis"].domain
        figure.add_trace(
            go.Heatmap(
                x=info.names,
                y=info.names,
                z=values.T,
                colorscale="Viridis" if column == 1 else "Cividis",
                colorbar={"x": axis[1] + 0.01, "y": 1, "yanchor": "top", "len": 0.8, "thickness": 16},
                hovertemplate=f"%{{x}} and %{{y}}: %{{z:.4g}}<extra>{escape(name)}</extra>",
            ),
            row=1,
            col=column,
        )
    many = {"showticklabels": len(info.names) <= 40, "type": "category", "showgrid": False}
    figure.update_xaxes(**many, constrain="domain")
    figure.update_yaxes(**many, autorange="reversed", constrain="domain", constraintoward="top")
    figure.update_xaxes(title_text="network")
    figure.update_yaxes(title_text="network", col=1)
    figure.update_yaxes(scaleanchor="x", row=1, col=1)
    figure.update_yaxes(scaleanchor="x2", row=1, col=2)
    figure.update_layout(margin={"t": figure.layout.margin.t + 30})
    return figure


def _matrix_info(barriers: Barriers, names: Sequence[str] | None) -> _MatrixInfo:
    found = barriers.barriers
    n = len(found)
    if n < 2:
        raise ValueError(f"a matrix needs at least 2 networks, got {n}")
    if names is not None and len(names) != n:
        raise ValueError(f"expected {n} names, one per network, got {len(names)}")
    finite = bool(np.isfinite(found).all())
    by, word = (found, "barriers") if finite else (barriers.distances, "distances")
    # rounding may leave a barrier a little below zero
    tree = linkage(squareform(np.maximum((by + by.T) / 2, 0), checks=False), "average", optimal_ordering=True)
    order = leaves_list(tree)
    labels = [str(i) for i in range(n)] if names is None else [escape(name) for name in names]
    panels = {}
    for title, values in (("barrier of the loss", found), ("distance in parameter space", barriers.distances)):
        shown = np.where(np.isfinite(values), values, np.nan)
        np.fill_diagonal(shown, np.nan)
        panels[title] = shown[np.ix_(order, order)]
    note = f"ordered by clustering of the {word}"
    return _MatrixInfo(order, [labels[i] for i in order], panels, note)
