"""Loss during training, of many runs by their settings."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from landscape.figures.style import (
    RUN_COLORS,
    escape,
    log_axis,
    metric_label,
    metric_title,
    new_figure,
    require_scale,
    unit_factor,
)

Array = np.ndarray
_THIN = 20  # single runs drawn per group


class _Group(NamedTuple):
    name: str
    color: str
    epochs: Array
    runs: Array  # [n, e] some of the runs
    median: Array
    lower: Array
    upper: Array


class _LossCurvesInfo(NamedTuple):
    groups: list[_Group]
    notes: tuple[str, ...]


def plot_loss_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], metric: str = "loss", scale: str = "linear"
) -> go.Figure:
    """Draw the median of many runs during training, the range of their middle half, and some runs.

    The runs drawn thin are those at evenly spaced ranks of the last value. Diverged runs (NaN or infinite) count as the
    worst in median and quartiles, which end where they would be infinite; single ones end where they diverge.

    Args:
        curves: Epochs `[e]` and values `[n, e]` by the name of the group, such as an optimizer.
        metric: Name of the values.
        scale: `"linear"` or `"log"`.

    Raises:
        ValueError: No group, shapes that do not fit, unknown scale, or values not positive on a log scale.

    Example:
        >>> plot_loss_curves({"adam": (epochs, study.curves["loss"])}, scale="log").show()  # doctest: +SKIP
    """
    info = _loss_curves_info(curves, metric, scale)
    figure = new_figure(f"{metric_title(metric)} during training", info.notes)
    for group in info.groups:
        rows = np.concatenate([group.runs, np.full((len(group.runs), 1), np.nan)], axis=1)
        figure.add_trace(
            go.Scatter(
                x=np.tile(np.append(group.epochs, np.nan), len(rows)),
                y=rows.ravel(),
                mode="lines",
                line={"color": group.color, "width": 0.8},
                opacity=0.35,
                legendgroup=group.name,
                showlegend=False,
                hoverinfo="skip",
            )
        )
        known = np.isfinite(group.upper)
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([group.epochs[known], group.epochs[known][::-1]]),
                y=np.concatenate([group.upper[known], group.lower[known][::-1]]),
                fill="toself",
                fillcolor=group.color,
                opacity=0.22,
                line={"width": 0},
                mode="lines",
                legendgroup=group.name,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    for group in info.groups:
        figure.add_trace(
            go.Scatter(
                x=group.epochs,
                y=np.where(np.isfinite(group.median), group.median, np.nan),
                customdata=np.stack([group.lower, group.upper], axis=1),
                mode="lines",
                line={"color": group.color, "width": 3},
                name=group.name,
                legendgroup=group.name,
                hovertemplate="epoch %{x:,d}: median %{y:.4g} (quartiles %{customdata[0]:.4g} to %{customdata[1]:.4g})"
                f"<extra>{group.name}</extra>",
            )
        )
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text=metric_label(metric))
    figure.update_layout(showlegend=len(info.groups) > 1)
    if scale == "log":
        figure.update_yaxes(log_axis([group.runs for group in info.groups]), exponentformat="power")
    return figure


def quartile_curves(values: Array, better: str = "lower") -> tuple[Array, Array, Array]:
    """Return better quartile, median and worse quartile at each epoch, `[e]`; diverged runs are the worst there are.

    Each is the value of a run, not one between two, so that none lies between a finite and an infinite one.

    Args:
        values: `[n, e]`.
        better: `"lower"` or `"higher"`.
    """
    sign = 1.0 if better == "lower" else -1.0
    costs = np.sort(np.where(np.isfinite(values), sign * values, np.inf), axis=0)
    n = len(costs) - 1
    places = int(np.floor(0.25 * n)), int(np.ceil(0.5 * n)), int(np.ceil(0.75 * n))
    return sign * costs[places[0]], sign * costs[places[1]], sign * costs[places[2]]


def _loss_curves_info(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], metric: str, scale: str) -> _LossCurvesInfo:
    require_scale(scale)
    if not curves:
        raise ValueError("give the curves of at least one group of runs")
    groups, n_lost = [], 0
    sign = -1.0 if unit_factor(metric) > 1 else 1.0  # of accuracies, the lowest are the worst
    for i, (name, (epochs, values)) in enumerate(curves.items()):
        x, y = np.asarray(epochs), np.asarray(values, dtype=np.float64) * unit_factor(metric)
        if y.ndim != 2 or not len(y) or x.shape != y.shape[1:]:
            raise ValueError(f"{name}: expected epochs [e] and values [n, e], got shapes {x.shape} and {y.shape}")
        if scale == "log" and (y <= 0).any():
            raise ValueError(f"{name} has values that are not positive: a log scale cannot show them")
        low, middle, high = quartile_curves(y, "higher" if sign < 0 else "lower")
        last = np.where(np.isfinite(y[:, -1]), sign * y[:, -1], np.inf)
        n_lost += int(np.isinf(last).sum())
        rank = np.argsort(last, kind="stable")
        chosen = rank[np.unique(np.linspace(0, len(y) - 1, _THIN).round().astype(int))]
        shown = np.where(np.isfinite(y[chosen]), y[chosen], np.nan)
        color = RUN_COLORS[i % len(RUN_COLORS)]
        groups.append(_Group(escape(name), color, x, shown, middle, low, high))
    notes = ["thick: median of the runs; band: their middle half; thin: some runs"]
    if n_lost:
        notes.append(f"{n_lost} diverged, which count as the worst")
    return _LossCurvesInfo(groups, tuple(notes))
