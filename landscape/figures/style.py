"""The look that all figures share: template, colors, and the words on them."""

import html
import textwrap
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from numpy.typing import ArrayLike

from landscape.arguments import expect
from landscape.surface import Surface

# Okabe and Ito (2008), told apart by color-blind readers; yellow left out, too light on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# of training runs, the same in every figure; vermilion first: it is seen best on a blue-to-yellow color scale
RUN_COLORS = tuple(PALETTE[i] for i in (1, 6, 3, 4, 5, 2, 0))
SCALES = ("linear", "log")
INK = "#1a1a1a"
CAMERA_SLOPE = 0.55  # height of the camera over its horizontal distance
GRID = "#e3e3e3"

_AXIS = {
    "automargin": True,
    "gridcolor": GRID,
    "linecolor": INK,
    "mirror": True,
    "showline": True,
    "ticks": "outside",
    "ticklen": 5,
    "title": {"standoff": 8},
    "zeroline": False,
}
_SCENE_AXIS = {
    "backgroundcolor": "white",
    "gridcolor": "#cfcfcf",
    "linecolor": INK,
    "showbackground": False,
    "tickfont": {"size": 12},
    "title": {"font": {"size": 14}},
    "zeroline": False,
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Arial, Helvetica, 'Liberation Sans', sans-serif", "size": 15, "color": INK},
        "title": {
            "x": 0.5,
            "xanchor": "center",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
            "pad": {"t": 12},
            "font": {"size": 20},
            "subtitle": {"font": {"size": 13, "color": "#555555"}},
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": PALETTE,
        "margin": {"l": 20, "r": 20, "t": 56, "b": 20},
        "legend": {
            "orientation": "h",
            "x": 0.5,
            "xanchor": "center",
            "y": 0,
            "yanchor": "bottom",
            "yref": "container",
            "font": {"size": 14},
        },
        "hoverlabel": {"align": "left", "font": {"size": 13}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "scene": {"xaxis": _SCENE_AXIS, "yaxis": _SCENE_AXIS, "zaxis": _SCENE_AXIS},
    }
)
pio.templates["landscape"] = TEMPLATE


def new_figure(title: str, notes: Sequence[str] = (), figure: go.Figure | None = None) -> go.Figure:
    """Return a figure in the common look, with a title and what the reader must know below it.

    Args:
        title: Plain text, short.
        notes: Plain sentences, shown small, one per line, wrapped for a phone.
        figure: Put them on this figure. Default: a new one.
    """
    figure = go.Figure() if figure is None else figure
    lines = [line for note in notes for line in textwrap.wrap(note, 54)]
    figure.update_layout(template="landscape", title={"text": escape(title)}, margin={"t": 56})
    if lines:
        figure.update_layout(
            title={"subtitle": {"text": "<br>".join(map(escape, lines))}}, margin={"t": 60 + 17 * len(lines)}
        )
    return figure


def log_axis(values: Sequence[ArrayLike]) -> dict:
    """Return the settings of a logarithmic axis whose ticks show whole values.

    Args:
        values: What is drawn along it.
    """
    drawn = np.concatenate([np.ravel(np.asarray(array, dtype=np.float64)) for array in values])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    decades = np.log10(drawn.max() / drawn.min()) if drawn.size else 0.0
    # left alone, plotly would label 1, 2, ..., 9 in every decade
    ticks = {"dtick": "D2"} if 0.9 < decades < 3.5 else {}
    return {"type": "log", "tickformat": "~g", **ticks}


def set_scene(figure: go.Figure, axes: Sequence[dict], aspect: Sequence[float], side: tuple[int, int]) -> None:
    """Set up a 3-D figure: axes, camera and margins that crop nothing.

    Args:
        figure: Is changed.
        axes: Settings of the three axes.
        aspect: Lengths of the three axes.
        side: Signs of x and y of the corner above which the camera stands.
    """
    distance = 0.9 + 0.45 * aspect[2]
    figure.update_layout(
        margin={"l": 0, "r": 10, "b": 10},
        legend={"itemsizing": "constant"},
        scene={
            **dict(zip(("xaxis", "yaxis", "zaxis"), axes, strict=True)),
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", aspect, strict=True)),
            "camera": {
                "eye": {"x": distance * side[0], "y": 1.05 * distance * side[1], "z": CAMERA_SLOPE * 1.45 * distance},
                "center": {"x": 0, "y": 0, "z": -0.14},
            },
        },
    )


def escape(text: str) -> str:
    """Escape text from files, so that plotly shows it as it is: no markup, no hover template."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of one that is shown in percent: an accuracy."""
    return metric == "accuracy" or metric.endswith("_accuracy")


def is_test(metric: str) -> bool:
    """Return whether a metric was measured on test data."""
    return metric.startswith("test_")


def unit_factor(metric: str) -> float:
    """Return what stored values are multiplied with to be shown: 100 for accuracies, in percent, else 1."""
    return 100.0 if is_share(metric) else 1.0


def metric_title(metric: str) -> str:
    """Return a metric's name as plain text: `"test accuracy (%)"`."""
    return metric.replace("_", " ") + (" (%)" if is_share(metric) else "")


def metric_label(metric: str) -> str:
    """Return a metric's name as escaped text, for axes, legends and hover boxes."""
    return escape(metric_title(metric))


def color_scale(metric: str) -> str:
    """Return a perceptually uniform color scale: one for losses, others for accuracies and for the rest."""
    if is_share(metric):
        return "Magma"
    return "Viridis" if metric.endswith("loss") else "Cividis"


def axis_range(axis: np.ndarray) -> list[float]:
    """Return the ends of an axis, apart even if it has one point only."""
    margin = 0.5 if len(axis) == 1 else 0.0
    return [float(axis[0]) - margin, float(axis[-1]) + margin]


def relative_widths(surface: Surface) -> list[float]:
    """Return how long the axes are drawn in 3-D: alike, or in proportion where they have the same unit."""
    if not same_unit(surface):
        return [1.0] * len(surface.axes)
    widths = np.array([high - low for low, high in map(axis_range, surface.axes.values())])
    return np.maximum(widths / widths.max(), 0.4).tolist()  # a very narrow one could not be read


def axis_labels(surface: Surface) -> list[str]:
    """Return the text along each axis: the stored label, or which coefficient it is."""
    stored = surface.provenance.get("axes") or []
    labels = [entry.get("label") for entry in stored]
    labels += [None] * (len(surface.axes) - len(labels))
    return [
        escape(label or f"{name}: coefficient of direction {i + 1}")
        for i, (name, label) in enumerate(zip(surface.axes, labels, strict=False))
    ]


def same_unit(surface: Surface) -> bool:
    """Return whether a step along any axis is the same distance, so that the axes may share one scale."""
    stored = surface.provenance.get("axes") or []
    units = {entry.get("unit") for entry in stored}
    return len(stored) == len(surface.axes) and len(units) == 1 and None not in units


def require_dimension(surface: Surface, k: int) -> None:
    """Refuse a surface of another dimension.

    Raises:
        ValueError: The surface has not `k` axes; the message names the figure that fits.
    """
    expect("surface", surface, Surface, "a Surface (Surface.load reads its file)")
    fitting = {1: "plot_line", 2: "plot_contour or plot_surface", 3: "plot_volume"}
    found = len(surface.axes)
    if found != k:
        remedy = f"use {fitting[found]}" if found in fitting else "no figure shows it: evaluate at most 3 directions"
        raise ValueError(f"this figure shows surfaces of {k} dimension(s), this one has {found}: {remedy}")


def require_scale(scale: str) -> None:
    """Refuse an unknown scale.

    Raises:
        ValueError: It is neither `"linear"` nor `"log"`.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
