"""The persistence diagram of a surface's minima."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.basins import MOST_NUMBERED, Basins, find_basins
from landscape.figures.grid import number, to_height
from landscape.figures.style import (
    GRID,
    INK,
    log_axis,
    metric_label,
    metric_title,
    new_figure,
    require_scale,
    unit_factor,
)
from landscape.topology import NONE, OUTSIDE, Topology

Array = np.ndarray


class _PersistenceInfo(NamedTuple):
    basins: Basins
    minimum: Array  # [n] which minima are drawn: those with any persistence
    birth: Array  # [n] their values, in the unit shown
    death: Array  # [n] at which they merge; what never does, at the top
    noise: Array  # [n]
    parent: Array  # [n]
    position: Array  # [n] in basins.shown, or -1
    ends: tuple[float, float]  # of both axes
    notes: tuple[str, ...]


def plot_persistence(topology: Topology, scale: str = "linear") -> go.Figure:
    """Draw for each minimum of a surface its value, and the value at which it merges with a lower one or drains away.

    The height above the diagonal is the persistence. Colored, with numbers: minima that count. Gray: minima within
    their noise, which the bar below each point shows. What never merges lies on the dashed line at the top.

    Args:
        topology: What `analyze` found.
        scale: Of both axes, `"linear"` or `"log"`.

    Raises:
        ValueError: Unknown scale.
    """
    info = _persistence_info(topology, scale)
    label = metric_label(topology.metric)
    figure = new_figure("persistence of the minima", info.notes)
    ends = list(info.ends)
    figure.add_trace(
        go.Scatter(x=ends, y=ends, mode="lines", line={"color": INK, "width": 1.5}, hoverinfo="skip", showlegend=False)
    )
    if (info.parent == NONE).any():
        top = float(info.death[info.parent == NONE][0])
        figure.add_hline(top, line={"color": INK, "width": 1.5, "dash": "dash"})
        # of a logarithmic axis, plotly wants the logarithm here
        place = {"x": 0.5, "xref": "paper", "y": float(to_height(top, scale)), "yanchor": "bottom"}
        figure.add_annotation(**place, text="never merges", showarrow=False, font={"size": 13})
    numbered = len(info.basins.shown) <= MOST_NUMBERED
    counted = info.position >= 0
    groups = (
        ("within the noise" if topology.threshold is None else "below the threshold", ~counted, "circle"),
        ("merges into a lower minimum", counted & (info.parent >= 0), "circle"),
        ("reaches the border", counted & (info.parent == OUTSIDE), "square"),
        ("the lowest of all", counted & (info.parent == NONE), "diamond"),
    )
    for name, kept, symbol in groups:
        if not kept.any():
            continue
        gray = not (kept & counted).any()
        places = info.position[kept]
        colors = "#b5b5b5" if gray else [info.basins.colors[place] for place in places]
        numbers = [""] * len(places) if gray else [str(info.basins.numbers[place]) for place in places]
        texts = [
            f"<b>{f'minimum {n}' if n else 'minimum'}</b><br>{label}: {number(birth, 4)}"
            + ("<br>never merges" if p == NONE else f"<br>merges at: {number(death, 4)}")
            + f"<br>noise: {number(noise)}"
            for n, birth, death, noise, p in zip(
                numbers, info.birth[kept], info.death[kept], info.noise[kept], info.parent[kept], strict=True
            )
        ]
        figure.add_trace(
            go.Scatter(
                x=info.birth[kept],
                y=info.death[kept],
                error_y={
                    "type": "data",
                    "array": np.zeros(kept.sum()),
                    "arrayminus": info.noise[kept],
                    "symmetric": False,
                    "color": "#8a8a8a",
                    "thickness": 1,
                    "width": 0,
                    "visible": bool(topology.threshold is None),
                },
                mode="markers+text" if numbered and not gray else "markers",
                text=numbers,
                textposition="middle center",
                textfont={"color": "white", "size": 13},
                marker={
                    "symbol": symbol,
                    "color": colors,
                    "size": 24 if numbered and not gray else 8,
                    "line": {"color": "white", "width": 1},
                },
                name=name,
                customdata=texts,
                hovertemplate="%{customdata}<extra></extra>",
                legendrank=1000 + len(figure.data),
            )
        )
    axis = {"gridcolor": GRID, "constrain": "domain"}
    if scale == "log":
        axis |= log_axis([ends])
    figure.update_xaxes(title_text=f"{label} of the minimum", range=_range(ends, scale), **axis)
    figure.update_yaxes(title_text=f"{label} at which it merges", range=_range(ends, scale), **axis)
    return figure


def _persistence_info(topology: Topology, scale: str) -> _PersistenceInfo:
    require_scale(scale)
    basins = find_basins(topology)
    m, factor = topology.minima, unit_factor(topology.metric)
    lasting = m.persistence > 0
    drawable = np.isfinite(m.value) & (np.isfinite(m.merge_value) | (m.parent == NONE))
    if scale == "log":
        drawable &= m.value > 0
    kept = np.flatnonzero(lasting & drawable)
    birth, death = m.value[kept] * factor, m.merge_value[kept] * factor
    finite = np.concatenate([birth, death[np.isfinite(death)]])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 10.0)
    if scale == "log":
        margin = (high / low) ** 0.06 if high > low else 2.0
        ends, never = (low / margin, high * margin**2), high * margin
    else:
        margin = 0.06 * (high - low) or 0.5
        ends, never = (low - margin, high + 2 * margin), high + margin
    position = np.full(len(m), -1)
    position[basins.shown] = np.arange(len(basins.shown))
    n_left = int((lasting & ~drawable).sum())
    why = "a value that is not finite or not above 0" if scale == "log" else "a value that is not finite"
    left_out = (f"{n_left} left out: {why}",) if n_left else ()
    return _PersistenceInfo(
        basins=basins,
        minimum=kept,
        birth=birth,
        death=np.where(m.parent[kept] == NONE, never, death),
        noise=m.noise[kept] * factor,
        parent=m.parent[kept],
        position=position[kept],
        ends=ends,
        notes=(f"{metric_title(topology.metric)}: {basins.note}", *left_out, *(["log scale"] * (scale == "log"))),
    )


def _range(ends: list[float], scale: str) -> list[float]:
    return np.log10(ends).tolist() if scale == "log" else ends
