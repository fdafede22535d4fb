"""Groups of runs compared two at a time."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.style import INK, escape, new_figure
from landscape.statistics import Comparison

Array = np.ndarray
# from orange (worse) through white to blue (better), told apart by color-blind readers
_COLORS = [[0.0, "#B35806"], [0.25, "#F1A340"], [0.5, "#FFFFFF"], [0.75, "#67A9CF"], [1.0, "#0571B0"]]


class _PairwiseInfo(NamedTuple):
    names: list[str]
    effect: Array
    p: Array
    text: Array
    hover: Array
    notes: tuple[str, ...]


def plot_pairwise(comparison: Comparison, alpha: float = 0.05) -> go.Figure:
    """Draw the probability that a run of one group is better than one of another, for all pairs.

    Each cell: the row's probability to be better than the column, and the adjusted p-value. Cells whose p-value is
    below `alpha` have a frame and a star.

    Args:
        comparison: Of `landscape.statistics.compare`.
        alpha: Level below which a difference counts as one.

    Example:
        >>> plot_pairwise(compare({"sgd": a, "adam": b, "rmsprop": c})).show()  # doctest: +SKIP
    """
    info = _pairwise_info(comparison, alpha)
    figure = new_figure("row better than column", info.notes)
    n = len(info.names)
    places = np.arange(n)
    figure.add_trace(
        go.Heatmap(
            x=places,
            y=places,
            z=info.effect,
            zmin=0,
            zmax=1,
            colorscale=_COLORS,
            customdata=info.hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=3,
            ygap=3,
            colorbar={"title": {"text": "probability", "side": "right"}, "tickvals": [0, 0.25, 0.5, 0.75, 1]},
        )
    )
    for i, j in np.argwhere(~np.eye(n, dtype=bool)):
        dark = abs(info.effect[i, j] - 0.5) > 0.4
        figure.add_annotation(
            x=j,
            y=i,
            text=info.text[i, j],
            showarrow=False,
            font={"size": 14 if n <= 5 else 10, "color": "white" if dark else INK},
        )
        if info.p[i, j] < alpha:
            box = {"x0": j - 0.46, "x1": j + 0.46, "y0": i - 0.46, "y1": i + 0.46}
            figure.add_shape(type="rect", **box, line={"color": INK, "width": 2.5})
    axis = {"tickvals": places, "ticktext": info.names, "range": [-0.5, n - 0.5], "showgrid": False, "ticks": ""}
    figure.update_xaxes(axis)
    figure.update_yaxes({**axis, "range": [n - 0.5, -0.5]})
    return figure


def _pairwise_info(comparison: Comparison, alpha: float) -> _PairwiseInfo:
    names = comparison.names
    n = len(names)
    effect, p = np.full((n, n), np.nan), np.full((n, n), np.nan)
    text, hover = np.full((n, n), "", dtype=object), np.full((n, n), "", dtype=object)
    for pair in comparison.pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        low, high = pair.effect.lower, pair.effect.upper
        for row, column, value, ends in (
            (i, j, pair.effect.value, (low, high)),
            (j, i, 1 - pair.effect.value, (1 - high, 1 - low)),
        ):
            effect[row, column], p[row, column] = value, pair.p_adjusted
            star = " *" if pair.p_adjusted < alpha else ""
            text[row, column] = "no test" if np.isnan(pair.p) else f"{value:.2f}<br>p {_short(pair.p_adjusted)}{star}"
            hover[row, column] = (
                f"{escape(names[row])} better than {escape(names[column])}:<br>probability {value:.3f} "
                f"({ends[0]:.3f} to {ends[1]:.3f})<br>p {_short(pair.p)}, adjusted {_short(pair.p_adjusted)}"
                + (f"<br>{pair.note}" if pair.note else "")
            )
    lost = [f"{k} of {escape(name)}" for name, k in comparison.n_diverged.items() if k]
    notes = [
        f"{comparison.better} is better; p: {'signed-rank' if comparison.paired else 'Brunner-Munzel'} permutation "
        f"test, {comparison.correction.title()} correction; * and frame: p < {alpha:g}"
    ]
    if lost:
        notes.append(f"diverged runs rank worst: {', '.join(lost)}")
    return _PairwiseInfo([escape(name) for name in names], effect, p, text, hover, tuple(notes))


def _short(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
