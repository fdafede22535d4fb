"""The number of minima of a surface as a function of the persistence that is asked of them."""

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.basins import count_note
from landscape.figures.style import INK, PALETTE, log_axis, metric_label, new_figure, unit_factor
from landscape.topology import Topology

Array = np.ndarray


class _CountInfo(NamedTuple):
    thresholds: Array  # [s] ascending, in the unit shown
    all: Array  # [s] minima of more persistence
    certain: Array  # [s] of these, those above their noise
    notes: tuple[str, ...]


def plot_minima_count(topology: Topology) -> go.Figure:
    """Draw how many minima have a persistence above a threshold, for all thresholds.

    A plateau of the curve is a count that does not depend on the choice. Solid: minima whose persistence is above their
    own noise, too. Dotted: all of them.

    Args:
        topology: What `analyze` found.
    """
    info = _count_info(topology)
    figure = new_figure("number of local minima", info.notes)
    curves = (
        ("all minima", info.all, {"color": "#8a8a8a", "dash": "dot", "width": 2}),
        ("minima above their noise", info.certain, {"color": PALETTE[0], "width": 3}),
    )
    for name, counts, look in curves:
        figure.add_trace(
            go.Scatter(
                x=info.thresholds,
                y=counts,
                mode="lines",
                line={"shape": "hv", **look},
                name=name,
                hovertemplate=f"persistence above %{{x:.3g}}: %{{y:,d}}<extra>{name}</extra>",
            )
        )
    if topology.threshold:
        x = topology.threshold * unit_factor(topology.metric)
        figure.add_vline(x, line={"color": INK, "width": 1.5, "dash": "dash"})
        text = f"{topology.count()} above the threshold"
        # of a logarithmic axis, plotly wants the logarithm here
        place = {"x": math.log10(x), "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 6}
        figure.add_annotation(**place, text=text, showarrow=False, font={"size": 14})
    figure.update_xaxes(title_text=f"threshold of the persistence ({metric_label(topology.metric)})")
    figure.update_xaxes(log_axis([info.thresholds]))
    top = int(info.all.max(initial=1))
    figure.update_yaxes(title_text="local minima of the surface", range=[-0.03 * top, 1.06 * top], rangemode="tozero")
    if top <= 10:
        figure.update_yaxes(dtick=1)
    return figure


def _count_info(topology: Topology) -> _CountInfo:
    factor = unit_factor(topology.metric)
    steps, _ = topology.count_curve()
    steps = steps[steps > 0] * factor
    noise = topology.minima.noise[topology.minima.noise > 0] * factor
    least = min([*steps[:1], *([float(np.median(noise))] if noise.size else [])], default=1.0)
    most = steps[-1] if len(steps) else 10 * least
    thresholds = np.concatenate([[least / 3], steps, [3 * most]])
    persistence = topology.minima.persistence * factor
    sure = persistence[topology.minima.persistence > topology.minima.noise]
    return _CountInfo(
        thresholds=thresholds,
        all=_above(persistence, thresholds),
        certain=_above(sure, thresholds),
        notes=(count_note(topology),),
    )


def _above(persistence: Array, thresholds: Array) -> Array:
    return len(persistence) - np.searchsorted(np.sort(persistence), thresholds, side="right")
