"""A quantity of many runs, group by group."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from landscape.figures.style import (
    INK,
    RUN_COLORS,
    escape,
    log_axis,
    metric_label,
    metric_title,
    new_figure,
    require_scale,
    unit_factor,
)
from landscape.statistics.samples import one_list, summarize
from landscape.statistics.tables import Estimate

Array = np.ndarray
_WIDTH = 0.74  # of a group's place that its runs fill


class _Group(NamedTuple):
    name: str
    color: str
    x: Array
    values: Array
    run: Array
    quartiles: tuple[float, float]
    median: Estimate
    n_diverged: int


class _DistributionsInfo(NamedTuple):
    groups: list[_Group]
    notes: tuple[str, ...]


def plot_distributions(
    groups: Mapping[str, ArrayLike], metric: str = "loss", scale: str = "linear", level: float = 0.95
) -> go.Figure:
    """Draw every run of each group, sorted, with the quartiles and the median.

    A group's runs are drawn from left to right in ascending order, so that flat parts are where many runs end, and no
    run is hidden. Box: quartiles; bar: median with its bootstrap interval. Diverged runs (NaN or infinite) are not
    drawn but counted below the group's name; accuracies are in percent.

    Args:
        groups: `[runs]` values by the name of the group, such as an optimizer.
        metric: Name of the quantity.
        scale: `"linear"` or `"log"`.
        level: Of the intervals.

    Raises:
        ValueError: No group or one without a finite value; unknown scale, or values not positive on a log scale.

    Example:
        >>> plot_distributions({"sgd": a, "adam": b}, "test_loss", "log").show()  # doctest: +SKIP
    """
    info = _distributions_info(groups, metric, scale, level)
    figure = new_figure(f"{metric_title(metric)} of each run", info.notes)
    for i, group in enumerate(info.groups):
        left, right = i - _WIDTH / 2 - 0.05, i + _WIDTH / 2 + 0.05
        low, high = group.quartiles
        figure.add_trace(
            go.Scatter(
                x=[left, right, right, left, left],
                y=[low, low, high, high, low],
                mode="lines",
                fill="toself",
                fillcolor=group.color,
                opacity=0.2,
                line={"width": 0},
                hoverinfo="skip",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=group.x,
                y=group.values,
                customdata=group.run,
                mode="markers",
                marker={"color": group.color, "size": 6 if len(group.x) <= 100 else 4},
                hovertemplate=f"run %{{customdata}}: %{{y:.5g}}<extra>{group.name}</extra>",
            )
        )
        median = group.median
        figure.add_trace(
            go.Scatter(
                x=[i],
                y=[median.value],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [np.nan_to_num(median.upper - median.value)],
                    "arrayminus": [np.nan_to_num(median.value - median.lower)],
                    "color": INK,
                    "thickness": 2.5,
                    "width": 7,
                },
                mode="markers",
                marker={"symbol": "line-ew", "size": 26, "line": {"color": INK, "width": 3}},
                hovertemplate=f"median {median.value:.5g} ({median.lower:.5g} to {median.upper:.5g})"
                f"<extra>{group.name}</extra>",
            )
        )
    figure.update_layout(showlegend=False)
    ticks = [f"{g.name}<br>{g.n_diverged} diverged" if g.n_diverged else g.name for g in info.groups]
    figure.update_xaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, range=[-0.55, len(ticks) - 0.45], showgrid=False
    )
    figure.update_yaxes(title_text=metric_label(metric), exponentformat="power")
    if scale == "log":
        figure.update_yaxes(log_axis([g.values for g in info.groups]))
    return figure


def _distributions_info(groups: Mapping[str, ArrayLike], metric: str, scale: str, level: float) -> _DistributionsInfo:
    require_scale(scale)
    if not groups:
        raise ValueError("give at least one group of runs")
    factor = unit_factor(metric)
    shown = {name: one_list(values, name) * factor for name, values in groups.items()}
    result = []
    for i, sample in enumerate(summarize(shown, level=level)):
        values = shown[sample.name]
        run = np.argsort(values, kind="stable")
        run = run[np.isfinite(values[run])]
        if scale == "log" and values[run[0]] <= 0:
            raise ValueError(f"{sample.name} has values that are not positive: a log scale cannot show them")
        places = i + _WIDTH * ((np.arange(len(run)) + 0.5) / len(run) - 0.5)
        low, high = np.quantile(values[run], [0.25, 0.75])
        color = RUN_COLORS[i % len(RUN_COLORS)]
        quartiles = float(low), float(high)
        group = _Group(
            escape(sample.name), color, places, values[run], run, quartiles, sample.median, sample.n_diverged
        )
        result.append(group)
    notes = (f"runs in ascending order; box: quartiles; bar: median with {100 * level:.4g} % interval",)
    return _DistributionsInfo(result, notes)
