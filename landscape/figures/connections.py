"""Which minima are connected below which loss."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.barriers import Disconnectivity
from landscape.figures.style import INK, PALETTE, escape, log_axis, new_figure, require_scale

Array = np.ndarray


class _TreeInfo(NamedTuple):
    x: Array  # [n + m] position of every node
    level: Array  # [n + m] loss of every node
    branches: list[tuple[list[float], list[float]]]
    names: list[str]


def plot_connections(tree: Disconnectivity, names: Sequence[str] | None = None, scale: str = "linear") -> go.Figure:
    """Draw a disconnectivity graph: minima as ends of branches, which join at the loss where a path connects them.

    Paths are those that were evaluated, normally straight ones: branches may join lower, never higher.

    Args:
        tree: Of the minima, see `barriers.disconnectivity`.
        names: One per minimum. Default: their numbers.
        scale: Of the loss, `"linear"` or `"log"`.

    Raises:
        ValueError: Unknown scale, or another number of names.

    Example:
        >>> plot_connections(disconnectivity(b.losses, b.heights)).show()  # doctest: +SKIP
    """
    require_scale(scale)
    info = _tree_info(tree, names)
    n = len(tree.losses)
    notes = [*(["log scale"] if scale == "log" else [])]
    figure = new_figure("minima and the losses that connect them", notes)
    x = [value for branch, _ in info.branches for value in (*branch, None)]
    y = [value for _, branch in info.branches for value in (*branch, None)]
    figure.add_trace(
        go.Scatter(x=x, y=y, mode="lines", line={"color": INK, "width": 2}, showlegend=False, hoverinfo="skip")
    )
    figure.add_trace(
        go.Scatter(
            x=info.x[:n],
            y=info.level[:n],
            mode="markers",
            marker={"size": 9, "color": PALETTE[0]},
            name="minimum",
            text=info.names,
            hovertemplate="%{text}: loss %{y:.4g}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=info.x[n:],
            y=info.level[n:],
            mode="markers",
            marker={"size": 7, "color": PALETTE[1], "symbol": "diamond"},
            name="highest loss on the path that joins them",
            hovertemplate="joined at loss %{y:.4g}<extra></extra>",
        )
    )
    order = [int(i) for i in tree.order]
    figure.update_xaxes(
        title_text="minimum",
        tickvals=list(range(n)),
        ticktext=[info.names[i] for i in order],
        showticklabels=n <= 40,
        showgrid=False,
        range=[-0.6, n - 0.4],
    )
    figure.update_yaxes(title_text="loss")
    if scale == "log":
        figure.update_yaxes(log_axis([info.level]))
    return figure


def _tree_info(tree: Disconnectivity, names: Sequence[str] | None) -> _TreeInfo:
    n = len(tree.losses)
    if names is not None and len(names) != n:
        raise ValueError(f"expected {n} names, one per minimum, got {len(names)}")
    x = np.empty(n + len(tree.merges))
    x[tree.order] = np.arange(n)
    level = np.concatenate([tree.losses, tree.heights])
    branches = []
    for k, (a, b) in enumerate(tree.merges):
        top = tree.heights[k]
        x[n + k] = (x[a] + x[b]) / 2
        branches.append(([x[a], x[a], x[b], x[b]], [level[a], top, top, level[b]]))
    labels = [str(i) for i in range(n)] if names is None else [escape(name) for name in names]
    return _TreeInfo(x, level, branches, labels)
