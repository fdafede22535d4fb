"""The profile of a loss along a line."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.grid import drawn
from landscape.figures.style import (
    INK,
    PALETTE,
    axis_labels,
    escape,
    is_share,
    is_test,
    log_axis,
    metric_label,
    metric_title,
    new_figure,
    require_dimension,
)
from landscape.surface import Surface

Array = np.ndarray
STANDARD_METRICS = ("loss", "test_loss", "accuracy", "test_accuracy")


class _Curve(NamedTuple):
    name: str
    metric: str
    color: str
    x: Array
    y: Array


class _LineInfo(NamedTuple):
    curves: list[_Curve]
    x_label: str
    has_origin: bool
    notes: tuple[str, ...]


def plot_line(
    surface: Surface | Mapping[str, Surface],
    metrics: Sequence[str] | None = None,
    scale: str = "linear",
) -> go.Figure:
    """Draw loss and accuracy along a line through the trained network, or along several lines.

    Losses belong to the left axis, accuracies in percent to the right one. Training data are drawn solid, test data
    dashed. Points that are not finite or not computed are gaps.

    Args:
        surface: Of one axis, or several such surfaces by name, then told apart by color.
        metrics: Keys of the values. Default: loss and accuracy on training and test data, as far as the surface has
            them; the losses only where there are several surfaces.
        scale: Of the left axis, `"linear"` or `"log"`.

    Raises:
        ValueError: Not one axis; unknown metric or scale; no surface.

    Example:
        >>> plot_line({"with skips": a, "without": b}, scale="log").show()  # doctest: +SKIP
    """
    info = _line_info(surface, metrics, scale)
    on_left = [curve.metric for curve in info.curves if not is_share(curve.metric)]
    on_right = [curve.metric for curve in info.curves if is_share(curve.metric)]
    figure = new_figure(_title(on_left, on_right), info.notes)
    for curve in info.curves:
        share = is_share(curve.metric)
        figure.add_trace(
            go.Scatter(
                x=curve.x,
                y=curve.y,
                mode="lines" if is_test(curve.metric) or len(curve.x) > 25 else "lines+markers",
                marker={"size": 4},
                line={"color": curve.color, "width": 3, "dash": "dash" if is_test(curve.metric) else "solid"},
                name=curve.name,
                yaxis="y2" if share and on_left else "y",
                hovertemplate=f"%{{x:.3g}}: %{{y:.4g}}{' %' if share else ''}<extra>{curve.name}</extra>",
            )
        )
    if info.has_origin:
        figure.add_vline(
            0,
            line={"color": INK, "width": 1.5, "dash": "dot"},
            annotation={"text": "trained network", "font": {"size": 13}},
            annotation_position="top",
        )
        figure.update_layout(margin={"t": figure.layout.margin.t + 16})
    figure.update_xaxes(title_text=info.x_label)
    if on_left:
        figure.update_yaxes(title_text="loss" if _all_losses(on_left) else "value")
        if scale == "log":
            figure.update_yaxes(log_axis([c.y for c in info.curves if not is_share(c.metric)]))
    if on_right:
        # the grid lines of two axes would not agree, so the right one has none
        axis = {"title": {"text": "accuracy (%)"}, "range": [0, 102], "dtick": 20, "showgrid": not on_left}
        key = "yaxis2" if on_left else "yaxis"
        if on_left:
            axis |= {"overlaying": "y", "side": "right", "mirror": False, "tickmode": "linear"}
        figure.update_layout({key: axis})
    return figure


def _line_info(surface: Surface | Mapping[str, Surface], metrics: Sequence[str] | None, scale: str) -> _LineInfo:
    single = isinstance(surface, Surface)
    surfaces: dict[str, Surface] = {"": surface} if isinstance(surface, Surface) else dict(surface)
    if not surfaces:
        raise ValueError("give at least one surface")
    curves: list[_Curve] = []
    notes: list[str] = []
    for i, (name, line) in enumerate(surfaces.items()):
        require_dimension(line, 1)
        for metric in metrics or _default_metrics(line, single):
            shown = drawn(line, metric, "linear" if is_share(metric) else scale)
            notes += [note if single else f"{name}: {note}" for note in shown.notes if note != "log scale"]
            color = PALETTE[int(is_share(metric))] if single else PALETTE[i % len(PALETTE)]
            label = metric_label(metric).removesuffix(" (%)")
            curve_name = label if single else f"{escape(name)}, {label}"
            curves.append(_Curve(curve_name, metric, color, shown.axes[0], shown.values))
    labels = {axis_labels(line)[0] for line in surfaces.values()}
    axes = [next(iter(line.axes.values())) for line in surfaces.values()]
    return _LineInfo(
        curves=curves,
        x_label=labels.pop() if len(labels) == 1 else "coefficient of the direction",
        has_origin=any(axis[0] <= 0 <= axis[-1] for axis in axes),
        notes=(*dict.fromkeys(notes), *(["log scale"] if scale == "log" else [])),
    )


def _default_metrics(surface: Surface, single: bool) -> list[str]:
    found = [name for name in STANDARD_METRICS if name in surface.values and (single or not is_share(name))]
    return found or [next(iter(surface.values))]


def _all_losses(metrics: Sequence[str]) -> bool:
    return all(metric.endswith("loss") for metric in metrics)


def _title(on_left: Sequence[str], on_right: Sequence[str]) -> str:
    left = ["loss" if _all_losses(on_left) else ", ".join(map(metric_title, on_left))] if on_left else []
    return " and ".join([*left, *(["accuracy"] if on_right else [])]) + " along a line"
