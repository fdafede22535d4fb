"""Number of distinct minima against the number of runs."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.style import RUN_COLORS, escape, new_figure
from landscape.statistics import Rarefaction

Array = np.ndarray


class _Curve(NamedTuple):
    name: str
    color: str
    size: Array
    expected: Array
    lower: Array
    upper: Array
    n_runs: int
    observed: int


class _RarefactionInfo(NamedTuple):
    curves: list[_Curve]
    common: int | None
    notes: tuple[str, ...]


def plot_rarefaction(curves: Rarefaction | Mapping[str, Rarefaction]) -> go.Figure:
    """Draw how many distinct minima any number of runs finds, for one optimizer or several.

    Solid up to the runs there were (dot), dashed beyond; bands are the pointwise intervals. A dotted line marks the
    largest number of runs that all optimizers made: there they compare fairly.

    Args:
        curves: Of `landscape.statistics.rarefaction`, or several by the name of the optimizer.

    Raises:
        ValueError: No curve.

    Example:
        >>> plot_rarefaction({"sgd": rarefaction(a), "adam": rarefaction(b)}).show()  # doctest: +SKIP
    """
    info = _rarefaction_info({"": curves} if isinstance(curves, Rarefaction) else curves)
    figure = new_figure("distinct minima", info.notes)
    several = len(info.curves) > 1
    for curve in info.curves:
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([curve.size, curve.size[::-1]]),
                y=np.concatenate([curve.upper, curve.lower[::-1]]),
                fill="toself",
                fillcolor=curve.color,
                opacity=0.16,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                legendgroup=curve.name,
                showlegend=False,
            )
        )
    for curve in info.curves:
        for inside, dash in ((curve.size <= curve.n_runs, "solid"), (curve.size >= curve.n_runs, "dash")):
            figure.add_trace(
                go.Scatter(
                    x=curve.size[inside],
                    y=curve.expected[inside],
                    customdata=np.stack([curve.lower, curve.upper], axis=1)[inside],
                    mode="lines",
                    line={"color": curve.color, "width": 3, "dash": dash},
                    name=curve.name,
                    legendgroup=curve.name,
                    showlegend=several and dash == "solid",
                    hovertemplate="%{x:,d} runs: %{y:.1f} minima (%{customdata[0]:.1f} to %{customdata[1]:.1f})"
                    f"<extra>{curve.name}</extra>",
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[curve.n_runs],
                y=[curve.observed],
                mode="markers",
                marker={"color": curve.color, "size": 11, "line": {"color": "white", "width": 1.5}},
                legendgroup=curve.name,
                showlegend=False,
                hovertemplate=f"%{{x:,d}} runs found %{{y:,d}} minima<extra>{curve.name}</extra>",
            )
        )
    if info.common is not None:
        figure.add_vline(x=info.common, line={"color": "#777777", "width": 1.5, "dash": "dot"})
    figure.update_xaxes(title_text="number of runs", rangemode="tozero")
    figure.update_yaxes(title_text="expected number of distinct minima", rangemode="tozero")
    return figure


def _rarefaction_info(curves: Mapping[str, Rarefaction]) -> _RarefactionInfo:
    if not curves:
        raise ValueError("give at least one rarefaction curve")
    rows = [
        _Curve(
            escape(name),
            RUN_COLORS[i % len(RUN_COLORS)],
            *(getattr(c, key) for key in ("size", "expected", "lower", "upper", "n_runs", "observed")),
        )
        for i, (name, c) in enumerate(curves.items())
    ]
    levels = {c.level for c in curves.values()}
    notes = ["dot: runs made"]
    if any(np.any(c.size > c.n_runs) for c in curves.values()):
        notes[0] += "; dashed: extrapolated"
    if len(levels) == 1:
        notes[0] += f"; band: {100 * levels.pop():.4g} % interval"
    sizes = {c.n_runs for c in curves.values()}
    common = min(sizes) if len(sizes) > 1 else None
    if common is not None:
        notes.append(f"dotted line: {common:,} runs, made by all")
    return _RarefactionInfo(rows, common, tuple(notes))
