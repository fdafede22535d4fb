"""Smallest and largest Hessian eigenvalues of the critical points that runs descended to."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.catalog import Catalog
from landscape.figures.style import GRID, INK, PALETTE, escape, log_axis, new_figure

Array = np.ndarray
# color-blind readers tell them apart by the symbol, too
_LOOK = {
    "minimum": (PALETTE[0], "circle"),
    "flat minimum": (PALETTE[5], "circle-open-dot"),
    "saddle": (PALETTE[1], "x"),
    "degenerate saddle": (PALETTE[4], "cross"),
    "at infinity": (PALETTE[3], "triangle-right"),
}
_OTHER = (PALETTE[6], "diamond-open")


class _Kind(NamedTuple):
    name: str
    loss: Array
    smallest: Array
    in_tolerances: Array
    largest: Array
    size: Array
    words: list[str]


def plot_eigenvalues(catalog: Catalog) -> go.Figure:
    """Draw what certifies the minima: the smallest eigenvalue of each point against the tolerance below which it is 0.

    Above: the largest eigenvalue. Below: the smallest, divided by the tolerance of that point: above the gray band it
    is positive (a minimum), below it negative (a saddle), within it counts as zero (flat). The scale is linear within
    the band and logarithmic outside. Each distinct minimum is one point, the larger the more runs ended there; of what
    is no minimum, each run is one.

    Args:
        catalog: With at least one point whose eigenvalues are known.

    Raises:
        ValueError: No eigenvalues are known.

    Example:
        >>> plot_eigenvalues(Catalog.load("minima.h5")).show()  # doctest: +SKIP
    """
    kinds = _eigenvalues_info(catalog)
    panels = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.42, 0.58])
    figure = new_figure("curvature where the runs ended", ["gray band: counts as zero"], panels)
    for kind in kinds:
        color, symbol = _LOOK.get(kind.name, _OTHER)
        for row, values in ((1, kind.largest), (2, _compressed(kind.in_tolerances))):
            figure.add_trace(
                go.Scatter(
                    x=kind.loss,
                    y=values,
                    customdata=np.stack([kind.smallest, kind.largest], axis=1),
                    text=kind.words,
                    mode="markers",
                    marker={
                        "color": color,
                        "symbol": symbol,
                        "size": kind.size,
                        "opacity": 0.85,
                        "line": {"width": 1, "color": color if "open" in symbol else "white"},
                    },
                    name=escape(kind.name),
                    legendgroup=kind.name,
                    showlegend=row == 1,
                    hovertemplate="%{text}: loss %{x:.6g}<br>eigenvalues %{customdata[0]:.3e} to %{customdata[1]:.3e}"
                    f"<extra>{escape(kind.name)}</extra>",
                ),
                row=row,
                col=1,
            )
    figure.add_hrect(y0=-1, y1=1, fillcolor="#9a9a9a", opacity=0.28, line_width=0, layer="below", row=2, col=1)
    figure.add_hline(y=0, line={"color": INK, "width": 1}, row=2, col=1)
    figure.update_yaxes(title_text="largest eigenvalue", row=1, col=1)
    if all((kind.largest > 0).all() for kind in kinds):
        figure.update_yaxes(log_axis([kind.largest for kind in kinds]), exponentformat="power", row=1, col=1)
    ticks = _ticks(np.concatenate([kind.in_tolerances for kind in kinds]))
    figure.update_yaxes(
        title_text="smallest, in tolerances",
        tickvals=_compressed(ticks),
        ticktext=[_power(value) for value in ticks],
        gridcolor=GRID,
        row=2,
        col=1,
    )
    figure.update_xaxes(title_text="loss with penalty", row=2, col=1)
    figure.update_layout(legend={"itemsizing": "constant"}, showlegend=True)
    return figure


def _eigenvalues_info(catalog: Catalog) -> list[_Kind]:
    columns = catalog.columns
    known = np.isfinite(columns["smallest"]) & np.isfinite(columns["largest"]) & (columns["tol"] > 0)
    alone = np.flatnonzero(known & (catalog.labels < 0))
    first = catalog.representatives()
    first = first[known[first]]
    points = np.concatenate([first, alone])
    if not len(points):
        raise ValueError("no eigenvalues are known of the points in this catalog")
    hits = np.concatenate([catalog.hits()[catalog.labels[first]], np.ones(len(alone), dtype=int)])
    names = columns["kind"][points].astype(str)
    result = []
    for name in [*(kind for kind in _LOOK if kind in names), *sorted(set(names) - set(_LOOK))]:
        mine = names == name
        rows = points[mine]
        words = [
            f"run {columns['run'][i]}" if catalog.labels[i] < 0 else f"minimum {catalog.labels[i]}, {n} runs"
            for i, n in zip(rows, hits[mine], strict=True)
        ]
        smallest, tolerance = columns["smallest"][rows], columns["tol"][rows]
        size = 8 + 5 * np.log10(hits[mine])
        result.append(
            _Kind(name, columns["loss"][rows], smallest, smallest / tolerance, columns["largest"][rows], size, words)
        )
    return result


def _compressed(values: Array) -> Array:
    """Return values as they are up to 1, and 1 + log10 beyond, signed."""
    size = np.abs(values)
    return np.sign(values) * np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))


def _ticks(values: Array) -> Array:
    """Return powers of ten of both signs, at most four each, with 0 and the tolerance."""
    ticks = [0.0]
    for sign in (1, -1):
        reached = np.max(sign * values, initial=1.0)
        n = int(np.ceil(np.log10(reached))) if reached > 1 else 0
        step = max(1, -(-n // 4))
        ticks += [sign * 10.0**k for k in range(0, n + 1, step)]
    return np.array(sorted(ticks))


def _power(value: float) -> str:
    if abs(value) <= 1:
        return f"{value:g}"
    return f"{'-' if value < 0 else ''}10<sup>{np.log10(abs(value)):.0f}</sup>"
