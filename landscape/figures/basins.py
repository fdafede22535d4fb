"""The minima of a surface as they are drawn: which ones, what they are called, their colors and markers."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from landscape.figures.grid import number
from landscape.figures.style import INK, PALETTE, axis_labels, metric_label, unit_factor
from landscape.surface import Surface
from landscape.topology import NONE, OUTSIDE, Topology
from landscape.topology.tree import neighbor_slices

Array = np.ndarray
_HUES = PALETTE[:6]
_OUTSIDE_TINT = "#e9e9e9"
MOST_NUMBERED = 40  # more numbers than that lie on each other


class Basins(NamedTuple):
    """The minima that count, and their basins.

    Attributes:
        shown: `[n]` the minima that count, by value.
        numbers: `[n]` what they are called.
        colors: `[n]` hexadecimal; neighbors differ.
        labels: `[nx, ny, ...]` merged basins: positions in `shown`, `OUTSIDE`, or `NONE`.
        note: How many they are, in words.
    """

    shown: Array
    numbers: Array
    colors: tuple[str, ...]
    labels: Array
    note: str


def find_basins(topology: Topology) -> Basins:
    """Choose what is drawn of a topology."""
    counted = topology.counts_as(topology.minima)
    shown = np.flatnonzero(counted)
    merged = topology.merged_basins()
    position = np.full(len(counted), OUTSIDE)
    position[shown] = np.arange(len(shown))
    labels = np.where(merged >= 0, position[np.maximum(merged, 0)] if len(counted) else OUTSIDE, merged)
    return Basins(shown, topology.numbers()[shown], _colors(labels, len(shown)), labels, count_note(topology))


def count_note(topology: Topology) -> str:
    """Say how many minima there are, above what, and what became of the border."""
    n = topology.count()
    least = "the noise" if topology.threshold is None else number(topology.threshold)
    n_more = int((topology.minima.persistence > 0).sum()) - n
    more = f", {n_more} below" if n_more else ""
    border = "; the border excluded" if topology.border == "exclude" else "; the border included"
    return f"{n} local {'minimum' if n == 1 else 'minima'} with a persistence above {least}{more}{border}"


def _colors(labels: Array, n: int) -> tuple[str, ...]:
    """Color basins so that neighbors differ, as far as six colors go."""
    beside: list[set[int]] = [set() for _ in range(n)]
    for a, b in neighbor_slices(labels.ndim, "full"):
        u, v = labels[a], labels[b]
        touch = (u != v) & (u >= 0) & (v >= 0)
        for i, j in np.unique(np.stack([u[touch], v[touch]], axis=1), axis=0).tolist():
            beside[i].add(j)
            beside[j].add(i)
    chosen: list[int] = []
    for i in range(n):
        taken = {chosen[j] for j in beside[i] if j < i}
        order = [(i + step) % len(_HUES) for step in range(len(_HUES))]
        chosen.append(next((hue for hue in order if hue not in taken), order[0]))
    return tuple(_HUES[hue] for hue in chosen)


def tint(color: str, strength: float = 0.45) -> str:
    """Return a paler color, for areas."""
    return f"rgb({','.join(str(round(255 + strength * (c - 255))) for c in hex_to_rgb(color))})"


def area_colors(basins: Basins) -> list[str]:
    """Return the colors of areas: of what leads out of the grid, then of the basins in order."""
    return [_OUTSIDE_TINT, *map(tint, basins.colors)]


class Points(NamedTuple):
    """Points of one kind on a surface.

    Attributes:
        coordinates: `[m, k]`.
        values: `[m]` in the unit shown.
        texts: `[m]` what shows under the pointer.
    """

    coordinates: Array
    values: Array
    texts: list[str]


def critical_points(surface: Surface, topology: Topology, basins: Basins) -> dict[str, Points]:
    """Gather what is marked on a surface: `"minimum"`, `"saddle"`, `"maximum"` (in the plane only) and `"out"`.

    Saddles are those at which the minima shown merge, and in the plane those at which the maxima that count do.
    `"out"` is where a minimum shown reaches the border or an unknown point before any saddle.
    """
    low, high = topology.minima, topology.maxima
    merging = basins.shown[topology.minima.parent[basins.shown] != NONE]
    out = low.way_out[merging]
    peaks = np.flatnonzero(topology.counts_as(high)) if len(topology.axes) == 2 else np.empty(0, dtype=int)
    parted = peaks[(high.parent[peaks] != NONE) & ~high.way_out[peaks]]
    names = {i: str(n) for i, n in zip(basins.shown.tolist(), basins.numbers.tolist(), strict=True)}
    names |= {OUTSIDE: "the border"}
    ends = [f"minimum {names[i]} ends in {names.get(int(low.parent[i]), 'another one')}" for i in merging.tolist()]
    places = {
        "maximum": (high.index[peaks], high.value[peaks], ["maximum"] * len(peaks)),
        "saddle": (
            np.concatenate([low.merge_index[merging[~out]], high.merge_index[parted]]),
            np.concatenate([low.merge_value[merging[~out]], high.merge_value[parted]]),
            [
                *(f"saddle: {end}" for end, leaves in zip(ends, out, strict=True) if not leaves),
                *["saddle between maxima"] * len(parted),
            ],
        ),
        "out": (
            low.merge_index[merging[out]],
            low.merge_value[merging[out]],
            [f"way out: {end}" for end, leaves in zip(ends, out, strict=True) if leaves],
        ),
        "minimum": (low.index[basins.shown], low.value[basins.shown], [f"minimum {n}" for n in basins.numbers]),
    }
    cells = np.bincount(basins.labels[basins.labels >= 0], minlength=len(basins.shown))
    known = max(int((topology.basins >= 0).sum()), 1)
    factor, label = unit_factor(topology.metric), metric_label(topology.metric)
    labels = axis_labels(surface)
    found = {}
    for kind, (index, values, titles) in places.items():
        coordinates = np.stack([axis[i] for axis, i in zip(topology.axes.values(), index.T, strict=True)], axis=1)
        texts = []
        for i, (title, place, value) in enumerate(zip(titles, coordinates, values, strict=True)):
            lines = [f"{text}: {number(c)}" for text, c in zip(labels, place, strict=True)]
            lines.append(f"{label}: {number(value * factor, 4)}")
            if kind == "minimum":
                lines.append(f"persistence: {number(low.persistence[basins.shown[i]] * factor)}")
                lines.append(f"basin: {cells[i] / known:.1%} of the points")
            texts.append("<br>".join([f"<b>{title}</b>", *lines]))
        found[kind] = Points(coordinates, values * factor, texts)
    return found


_LOOKS = {  # name, symbol, symbol in 3-D, fill, edge, size
    "maximum": ("maximum", "triangle-up", "square", "white", INK, 11),
    "saddle": ("saddle", "x", "diamond", "white", INK, 11),  # some fonts lack the x of 3-D figures
    "out": ("lowest way to the border", "square", "square", "white", "#555555", 9),
    "minimum": ("minimum", "circle", "circle", "", "white", 24),
}


def point_marks(
    points: dict[str, Points], basins: Basins, heights: dict[str, Array] | None = None
) -> list[go.Scatter | go.Scatter3d]:
    """Return minima with their numbers, saddles, maxima and ways out as markers, in 2 or 3 dimensions.

    Args:
        points: What `critical_points` found.
        basins: For numbers and colors.
        heights: `[m]` last coordinate by kind, for a surface of fewer axes.
    """
    traces = []
    numbered = len(basins.shown) <= MOST_NUMBERED
    flat = points["minimum"].coordinates.shape[1] + (heights is not None) == 2
    on_surface = heights is not None and not flat  # there, the numbers stand on pins
    point = go.Scatter if flat else go.Scatter3d
    for kind, (name, symbol, symbol_3d, fill, edge, size) in _LOOKS.items():
        found = points[kind]
        columns = [*found.coordinates.T, *([] if heights is None else [heights[kind]])]
        if not np.isfinite(columns[-1]).any():
            continue
        low = kind == "minimum"
        with_text = low and numbered and not on_surface
        pixels = size if numbered else 9 if low else 5
        traces.append(
            point(
                **dict(zip("xyz", columns, strict=False)),
                mode="markers+text" if with_text else "markers",
                text=[f"{n}" if flat else f"<b>{n}</b>" for n in basins.numbers] if with_text else None,
                textposition="middle center" if flat else "top center",
                textfont={"color": "white" if flat else INK, "size": 13 if flat else 16},
                marker={
                    "symbol": symbol if flat else symbol_3d,
                    "color": list(basins.colors) if low else fill,
                    "size": pixels if flat else min(pixels, 14) / 1.8,
                    "line": {"color": edge if flat else INK, "width": 2 if flat and numbered else 1},
                },
                name=name,
                showlegend=not low,
                customdata=found.texts,
                hovertemplate="%{customdata}<extra></extra>",
                **({"cliponaxis": False} if flat else {}),
            )
        )
    if len(basins.shown):  # in the legend without the color of one of them
        gray = {"symbol": "circle", "color": "#777777", "size": 12, "line": {"color": "white", "width": 1}}
        nowhere = {axis: [None] for axis in ("xy" if flat else "xyz")}
        traces.append(point(**nowhere, mode="markers", marker=gray, name="minimum", hoverinfo="skip"))
    return traces
