"""The number of distinct minima as a function of the distance up to which two are the same."""

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.catalog import Catalog
from landscape.figures.style import INK, PALETTE, new_figure

Array = np.ndarray
_LOWEST = 1e-12  # distances below are those of rounding
_REACH = 100  # tolerances up to which distances are known


class _CountInfo(NamedTuple):
    tolerances: Array  # [k] ascending, positive
    counts: Array  # [k]
    chosen: float
    n_chosen: int
    plateau: tuple[float, float]  # tolerances between which the count stays as it is at the chosen one


def plot_count_tolerance(catalog: Catalog) -> go.Figure:
    """Draw how many distinct minima there are for all tolerances up to 100 times that used, which is marked.

    A long plateau around the mark says that the count does not depend on the choice; its ends are in the subtitle.

    Args:
        catalog: With at least one certified minimum.

    Raises:
        ValueError: There is no certified minimum.

    Example:
        >>> plot_count_tolerance(Catalog.load("minima.h5")).show()  # doctest: +SKIP
    """
    info = _count_info(catalog)
    low, high = info.plateau
    less = " or less" if low <= info.tolerances[0] else ""
    more = " or more" if high >= info.tolerances[-1] else ""
    note = f"the count is the same for tolerances from {low:.0e}{less} to {high:.0e}{more}"
    figure = new_figure("distinct minima against the tolerance", [note])
    figure.add_vrect(x0=low, x1=high, fillcolor=PALETTE[0], opacity=0.09, line_width=0)
    figure.add_trace(
        go.Scatter(
            x=info.tolerances,
            y=info.counts,
            mode="lines",
            line={"color": PALETTE[0], "width": 3, "shape": "hv"},
            hovertemplate="up to a distance of %{x:.2e}: %{y:,d} minima<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_vline(info.chosen, line={"color": INK, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        x=math.log10(info.chosen),  # of a logarithmic axis, plotly wants the logarithm here
        y=1,
        yref="paper",
        xanchor="right",
        yanchor="top",
        xshift=-6,
        text=f"{info.n_chosen:,} minima<br>at the tolerance {info.chosen:g}",
        align="right",
        showarrow=False,
        font={"size": 14},
        bgcolor="rgba(255,255,255,0.7)",
    )
    every = max(1, round(math.log10(info.tolerances[-1] / info.tolerances[0]) / 7))
    figure.update_xaxes(
        title_text="tolerance (relative distance)",
        type="log",
        dtick=every,
        exponentformat="power",
    )
    top = int(info.counts.max())
    figure.update_yaxes(title_text="number of distinct minima", range=[-0.03 * top, 1.12 * top])
    if top <= 10:
        figure.update_yaxes(dtick=1)
    return figure


def _count_info(catalog: Catalog) -> _CountInfo:
    if not catalog.n_minima:
        raise ValueError("there is no certified minimum to count")
    chosen, highest = catalog.tolerance, _REACH * catalog.tolerance
    heights = np.sort(catalog.heights)
    steps = np.unique(np.maximum(heights[heights <= highest], _LOWEST))
    below, above = steps[steps <= chosen], steps[steps > chosen]
    lowest = max(_LOWEST, min(steps[0], chosen) / 10) if len(steps) else chosen / _REACH
    tolerances = np.unique(np.concatenate([[lowest, chosen, highest], steps]))
    plateau = float(below[-1]) if len(below) else float(lowest), float(above[0]) if len(above) else highest
    return _CountInfo(
        tolerances, catalog.count_at(tolerances), chosen, int(catalog.count_at(np.array([chosen]))[0]), plateau
    )
