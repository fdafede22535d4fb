"""The loss along paths between networks, with the barriers marked."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.barriers import PathProfile
from landscape.figures.style import (
    PALETTE,
    escape,
    is_share,
    metric_label,
    metric_title,
    new_figure,
    unit_factor,
)

Array = np.ndarray


class _Curve(NamedTuple):
    name: str
    color: str
    t: Array
    values: Array
    line: Array  # between the ends
    at: int | None  # where the barrier is; None where there is none
    barrier: float


def plot_barrier(paths: PathProfile | Mapping[str, PathProfile], metric: str | None = None) -> go.Figure:
    """Draw a metric along the straight path between two networks, or along several, and mark their barriers.

    The barrier is the largest rise above the line between the ends (dashed); of an accuracy the largest drop below it.

    Args:
        paths: One path, or several by name: before and after alignment, for example.
        metric: A key of their values. Default: the first, the loss.

    Raises:
        ValueError: No path, or a path without the metric.

    Example:
        >>> paths = {"as trained": before, "hidden units aligned": after}  # doctest: +SKIP
        >>> plot_barrier(paths).show()  # doctest: +SKIP
    """
    curves, metric = _barrier_info(paths, metric)
    unit = " %" if is_share(metric) else ""
    figure = new_figure(f"{metric_title(metric).removesuffix(' (%)')} between two networks")
    for curve in curves:
        figure.add_trace(
            go.Scatter(
                x=curve.t[[0, -1]],
                y=curve.line[[0, -1]],
                mode="lines",
                line={"color": curve.color, "width": 1.5, "dash": "dash"},
                showlegend=False,
                hoverinfo="skip",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=curve.t,
                y=np.where(np.isfinite(curve.values), curve.values, np.nan),
                mode="lines+markers",
                marker={"size": 5},
                line={"color": curve.color, "width": 3},
                name=f"{curve.name}barrier {curve.barrier:.3g}{unit}",
                hovertemplate=f"t = %{{x:.3g}}: %{{y:.4g}}{unit}<extra>{curve.name.rstrip(': ')}</extra>",
            )
        )
        if curve.at is not None:
            figure.add_trace(
                go.Scatter(
                    x=[curve.t[curve.at]] * 2,
                    y=[curve.line[curve.at], curve.values[curve.at]],
                    mode="lines+markers",
                    marker={"symbol": "line-ew", "size": 12, "line": {"width": 2, "color": curve.color}},
                    line={"color": curve.color, "width": 2, "dash": "dot"},
                    showlegend=False,
                    hoverinfo="skip",
                )
            )
    figure.update_xaxes(title_text="position between the networks, 0 to 1", range=[-0.02, 1.02])
    figure.update_yaxes(title_text=metric_label(metric))
    return figure


def _barrier_info(paths: PathProfile | Mapping[str, PathProfile], metric: str | None) -> tuple[list[_Curve], str]:
    named = {"": paths} if isinstance(paths, PathProfile) else dict(paths)
    if not named:
        raise ValueError("give at least one path")
    metric = next(iter(next(iter(named.values())).values)) if metric is None else metric
    factor = unit_factor(metric)
    curves = []
    for i, (name, path) in enumerate(named.items()):
        excess = path.excess(metric) * factor
        values = path.values[metric] * factor
        line = (1 - path.t) * values[0] + path.t * values[-1]
        barrier = float(np.max(excess))
        at = int(np.argmax(excess)) if np.isfinite(barrier) and barrier > 0 else None
        label = f"{escape(name)}: " if name else ""
        curves.append(_Curve(label, PALETTE[i % len(PALETTE)], path.t, values, line, at, barrier))
    return curves, metric
