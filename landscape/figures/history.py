"""Loss and accuracy while training."""

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from landscape.figures.style import (
    PALETTE,
    RUN_COLORS,
    escape,
    is_share,
    is_test,
    log_axis,
    metric_label,
    new_figure,
    require_scale,
    unit_factor,
)

Array = np.ndarray
History = Mapping[str, ArrayLike]


class _Curve(NamedTuple):
    name: str
    metric: str
    color: str
    x: Array
    values: Array


def plot_history(history: History | Mapping[str, History], scale: str = "linear") -> go.Figure:
    """Draw loss and accuracy against the epoch or the training step, of one run or of several.

    Training data are drawn solid, test data dashed; accuracies are in percent. NaN counts as not measured and is left
    out, infinity is a gap.

    Args:
        history: `[e]` values by name: `"loss"`, `"test_loss"`, `"accuracy"`, `"test_accuracy"`; `"epoch"` `[e]`, or
            else `"step"` `[e]`, is the horizontal axis (default: 0, 1, ...). Or such histories by the name of the run.
        scale: Of the loss axis, `"linear"` or `"log"`.

    Raises:
        ValueError: Neither a loss nor an accuracy is there, lengths differ, or the scale is unknown.

    Example:
        >>> plot_history({"loss": [2.3, 0.9, 0.4], "accuracy": [0.1, 0.7, 0.9]}).show()  # doctest: +SKIP
    """
    require_scale(scale)
    curves, x_key = _history_info(history)
    rows = [share for share in (False, True) if any(is_share(c.metric) == share for c in curves)]
    panels = make_subplots(rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    figure = new_figure("training", figure=panels)
    shown: set[str] = set()
    for curve in curves:
        share = is_share(curve.metric)
        figure.add_trace(
            go.Scatter(
                x=curve.x,
                y=curve.values,
                mode="lines" if is_test(curve.metric) or len(curve.x) > 25 else "lines+markers",
                marker={"size": 5},
                line={"color": curve.color, "width": 2.5, "dash": "dash" if is_test(curve.metric) else "solid"},
                name=curve.name,
                legendgroup=curve.name,
                showlegend=curve.name not in shown,
                hovertemplate=f"{x_key} %{{x:,d}}: %{{y:.4g}}{' %' if share else ''}"
                f"<extra>{curve.name}, {metric_label(curve.metric)}</extra>",
            ),
            row=1 + rows.index(share),
            col=1,
        )
        shown.add(curve.name)
    for row, share in enumerate(rows, start=1):
        figure.update_yaxes(title_text="accuracy (%)" if share else "loss", row=row, col=1)
        if scale == "log" and not share:
            figure.update_yaxes(log_axis([c.values for c in curves if not is_share(c.metric)]), row=row, col=1)
    figure.update_xaxes(title_text="epoch" if x_key == "epoch" else "training step", row=len(rows), col=1)
    return figure


def _history_info(
    history: History | Mapping[str, History],
) -> tuple[list[_Curve], str]:
    several = any(isinstance(value, Mapping) for value in history.values())
    runs = cast(Mapping[str, History], history if several else {"": history})
    x_key = "step" if all("step" in run and "epoch" not in run for run in runs.values()) else "epoch"
    curves = []
    for i, (name, run) in enumerate(runs.items()):
        metrics = [key for key in run if key.endswith("loss") or is_share(key)]
        for metric in metrics:
            values = np.asarray(run[metric], dtype=np.float64)
            x = np.asarray(run.get(x_key, np.arange(values.size)))
            if values.shape != x.shape:
                raise ValueError(f"{metric} has {values.size} values for {x.size} epochs or steps")
            data = "test data" if is_test(metric) else "training data"
            color = RUN_COLORS[i % len(RUN_COLORS)] if several else PALETTE[int(is_test(metric))]
            label = f"{escape(name)}, {data}" if several else data
            given = ~np.isnan(values)
            finite = np.where(np.isinf(values), np.nan, values)[given]
            curves.append(_Curve(label, metric, color, x[given], finite * unit_factor(metric)))
    if not curves:
        raise ValueError(f"the history has neither a loss nor an accuracy, only {', '.join(history) or 'nothing'}")
    return curves, x_key
