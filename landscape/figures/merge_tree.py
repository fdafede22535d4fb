"""The merge tree of a surface's minima, as the disconnectivity graph of physical chemistry."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.basins import MOST_NUMBERED, Basins, find_basins
from landscape.figures.grid import number, to_height
from landscape.figures.style import GRID, log_axis, metric_label, new_figure, require_scale, unit_factor
from landscape.topology import NONE, OUTSIDE, Topology

Array = np.ndarray
_BORDER_COLOR = "#8a8a8a"


class _Branch(NamedTuple):
    color: str
    x: tuple[float, ...]
    y: tuple[float, ...]  # heights


class _TreeInfo(NamedTuple):
    basins: Basins
    leaves: Array  # [n] horizontal place of each minimum
    feet: Array  # [n] its height
    border: float | None  # horizontal place of what lies beyond the border
    branches: list[_Branch]
    bottom: float  # heights
    top: float
    notes: tuple[str, ...]


def plot_merge_tree(topology: Topology, scale: str = "linear") -> go.Figure:
    """Draw which minima of a surface are joined below which value.

    Each line begins at the value of a minimum and joins that of a lower one at the value of the lowest pass between
    them (Becker and Karplus 1997, doi:10.1063/1.473299); its height is the persistence. From left to right there is no
    scale. Minima that do not count are left out; the dashed line is what lies beyond the border, joined where a basin
    flows out over it.

    Args:
        topology: What `analyze` found.
        scale: Of the values, `"linear"` or `"log"`.

    Raises:
        ValueError: Unknown scale.
    """
    info = _tree_info(topology, scale)
    label, factor = metric_label(topology.metric), unit_factor(topology.metric)
    values = (lambda heights: 10.0 ** np.asarray(heights)) if scale == "log" else np.asarray
    figure = new_figure("disconnectivity graph of the minima", info.notes)
    for color in dict.fromkeys(branch.color for branch in info.branches):
        own = [branch for branch in info.branches if branch.color == color]
        figure.add_trace(
            go.Scatter(
                x=[x for branch in own for x in (*branch.x, None)],
                y=[y for branch in own for y in (*values(branch.y), None)],
                mode="lines",
                line={"color": color, "width": 2.5, "dash": "dash" if color == _BORDER_COLOR else "solid"},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    numbered = len(info.basins.shown) <= MOST_NUMBERED
    m = topology.minima
    texts = [
        f"<b>minimum {n}</b><br>{label}: {number(m.value[i] * factor, 4)}"
        f"<br>merges at: {number(m.merge_value[i] * factor, 4)}<br>persistence: {number(m.persistence[i] * factor)}"
        for i, n in zip(info.basins.shown, info.basins.numbers, strict=True)
    ]
    figure.add_trace(
        go.Scatter(
            x=info.leaves,
            y=values(info.feet),
            mode="markers+text" if numbered else "markers",
            text=[str(n) for n in info.basins.numbers],
            textposition="middle center",
            textfont={"color": "white", "size": 13},
            marker={
                "color": list(info.basins.colors),
                "size": 24 if numbered else 7,
                "line": {"color": "white", "width": 1},
            },
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    )
    if info.border is not None:
        bottom = float(values(info.bottom))
        figure.add_annotation(
            x=info.border,
            y=info.bottom,  # of a logarithmic axis, plotly wants the logarithm here
            text="border",
            textangle=-90,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font={"size": 13, "color": "#555555"},
            hovertext=f"beyond the border, drawn down to {number(bottom)}",
        )
    figure.update_xaxes(visible=False, range=[-0.8, len(info.leaves) - 0.2 + (info.border is not None)])
    figure.update_yaxes(title_text=label, range=[info.bottom, info.top], gridcolor=GRID)
    if scale == "log":
        figure.update_yaxes(log_axis([values(np.array([info.bottom, info.top]))]))
    return figure


def _tree_info(topology: Topology, scale: str) -> _TreeInfo:
    require_scale(scale)
    basins = find_basins(topology)
    m, factor = topology.minima, unit_factor(topology.metric)
    shown = basins.shown
    feet, joins = to_height(m.value[shown] * factor, scale), to_height(m.merge_value[shown] * factor, scale)
    finite = np.concatenate([feet, joins])
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.5
    bottom, top = low - margin, high + margin
    n_low = int(np.isnan(feet).sum())
    notes = [basins.note]
    if n_low:
        notes.append(f"{n_low} too low for the scale, drawn down to the edge")
    feet = np.where(np.isfinite(feet), feet, bottom + 0.3 * margin)
    joins = np.where(np.isfinite(joins), joins, top)
    parents = _parents(topology, shown)
    order = _order(parents, joins)
    place = {leaf: float(i) for i, leaf in enumerate(order)}
    branches = []
    if OUTSIDE in place:
        branches.append(_Branch(_BORDER_COLOR, (place[OUTSIDE],) * 2, (bottom, top)))
    for i, parent in enumerate(parents):
        x, foot, head = place[i], float(feet[i]), float(joins[i])
        branches.append(_Branch(basins.colors[i], (x, x, place.get(parent, x)), (foot, head, head)))
    return _TreeInfo(
        basins=basins,
        leaves=np.array([place[i] for i in range(len(shown))]),
        feet=feet,
        border=place.get(OUTSIDE),
        branches=branches,
        bottom=bottom,
        top=top,
        notes=tuple(notes + (["log scale"] if scale == "log" else [])),
    )


def _parents(topology: Topology, shown: Array) -> list[int]:
    """Return for each minimum shown the position of the one shown into which it merges, `OUTSIDE` or `NONE`."""
    position = {int(i): place for place, i in enumerate(shown)}
    parents = []
    for i in shown:
        parent = int(topology.minima.parent[i])
        while parent >= 0 and parent not in position:
            parent = int(topology.minima.parent[parent])
        parents.append(position.get(parent, parent))
    return parents


def _order(parents: list[int], joins: Array) -> list[int]:
    """Return the minima, and `OUTSIDE` at the right if one merges into it, so that what merges later stands outside."""
    groups: dict[int, list[int]] = {i: [i] for i in (*range(len(parents)), OUTSIDE)}
    for i in np.lexsort((-np.arange(len(parents)), joins)).tolist():
        if parents[i] == NONE:
            continue
        group, other = groups[parents[i]], groups.pop(i)
        middle = group.index(parents[i])
        left = parents[i] == OUTSIDE or middle < len(group) - 1 - middle
        groups[parents[i]] = [*other, *group] if left else [*group, *other]
    outside = groups.pop(OUTSIDE)
    return [leaf for group in groups.values() for leaf in group] + (outside if len(outside) > 1 else [])
