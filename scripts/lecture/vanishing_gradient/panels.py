"""Draw what was measured: four panels for each question."""

from collections.abc import Sequence
from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.figures import plot_loss_curves
from landscape.figures.style import INK, PALETTE, RUN_COLORS, new_figure
from lecture.vanishing_gradient.measurements import ACTIVATIONS, DESCENT, NOTHING, SCALES, Plan, Start, values

SYMBOLS = ("circle", "square", "diamond", "x")
DOTTED = {"color": INK, "width": 1.5, "dash": "dot"}


def plot_start(results: dict[Start, Any], plan: Plan, look: str) -> go.Figure:
    """Draw the entries of the gradient before training against the layer."""
    notes = [
        look,
        f"before training; median of {plan.seeds} seeds, band: all of them",
        f"scale: factor on the initial weights; dotted: {NOTHING:.0e}",
    ]
    figure = panels("Gradient of each layer", notes, list(ACTIVATIONS.values()))
    entries = {key: values(results[Start(*key)], "start", "entries") for key in product(ACTIVATIONS, SCALES)}
    for i, activation in enumerate(ACTIVATIONS):
        for j, scale in enumerate(SCALES):
            x = np.arange(1, plan.depth + 2)
            add_band(figure, i, x, entries[activation, scale], RUN_COLORS[j], f"scale {scale:g}", SYMBOLS[j], i == 0)
        figure.add_hline(NOTHING, line=DOTTED, **place(i))
    figure.update_yaxes(power_axis(np.concatenate(list(entries.values()))))
    figure.update_yaxes(title_text="entry (RMS)", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(range=[0, plan.depth + 2])
    figure.update_xaxes(title_text="layer (1: front)", row=2)
    return figure


def plot_training(results: dict[Start, Any], plan: Plan, guessing: float, look: str) -> go.Figure:
    """Draw the loss during training; what diverged is named."""
    notes = [
        look,
        f"gradient descent, rate {DESCENT['learning_rate']:g}, batches of {plan.batch_size}",
        f"median and middle half of {plan.seeds} seeds; dotted: guessing",
    ]
    figure = panels("Training from each start", notes, list(ACTIVATIONS.values()))
    epochs = np.arange(plan.epochs + 1)
    for i, activation in enumerate(ACTIVATIONS):
        losses = {scale: np.array(results[Start(activation, scale)]["loss"]) for scale in SCALES}
        for trace in plot_loss_curves({f"scale {s:g}": (epochs, each) for s, each in losses.items()}).data:
            figure.add_trace(trace.update(showlegend=i == 0 and trace.showlegend is not False), **place(i))
        lost = [f"{scale:g}" for scale, each in losses.items() if not np.isfinite(each).all()]
        if lost:
            figure.add_annotation(
                text=f"scale {', '.join(lost)}: diverged",
                x=0.96,
                y=0.9,
                xref="x domain",
                yref="y domain",
                xanchor="right",
                showarrow=False,
                font={"size": 13},
                **place(i),
            )
        figure.add_hline(guessing, line=DOTTED, **place(i))
    figure.update_yaxes(range=[0, 1.5 * guessing], dtick=1)
    figure.update_yaxes(title_text="loss (nats)", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(title_text="epoch", row=2)
    return figure


def plot_during(during: dict[str, Any], look: str) -> go.Figure:
    """Draw the entries of the gradient by layer during training."""
    notes = [look, "scale 1, seed 0; color: entry of the gradient (RMS)"]
    figure = panels("Gradient during training", notes, list(ACTIVATIONS.values()))
    entries = {activation: np.array(run["entries"]) for activation, run in during.items()}
    axis = power_axis(np.concatenate([each.ravel() for each in entries.values()]))
    for i, (activation, each) in enumerate(entries.items()):
        with np.errstate(divide="ignore"):
            exponents = np.log10(each)
        figure.add_trace(
            go.Heatmap(
                x=during[activation]["epochs"],
                y=np.arange(1, each.shape[1] + 1),
                z=exponents.T,
                customdata=each.T,
                coloraxis="coloraxis",
                hovertemplate="layer %{y}, epoch %{x:.3g}: %{customdata:.2g}<extra></extra>",
            ),
            **place(i),
        )
    ticks = np.log10(axis["tickvals"])
    bar = {"tickvals": ticks, "ticktext": axis["ticktext"], "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": ticks[0], "cmax": ticks[-1], "colorbar": bar})
    figure.update_yaxes(title_text="layer (1: front)", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(title_text="epoch", row=2)
    return figure


def plot_biases(results: dict[Start, Any], plan: Plan, guessing: float, look: str) -> go.Figure:
    """Draw slope, dead units, gradient and final loss against the hidden biases."""
    notes = [
        look,
        f"scale 1, all hidden biases at one value; {plan.seeds} seeds:",
        "median, band: all; dotted: guessing",
    ]
    titles = ["mean slope", "dead units (%)", "first layer: entry (RMS)", "loss after training"]
    figure = panels("Biases moved", notes, titles)
    of = {
        (activation, name): np.stack(
            [values(results[Start(activation, 1.0, bias)], "start", name) for bias in plan.biases], axis=1
        )
        for activation, name in product(ACTIVATIONS, ("slope", "dead", "entries"))
    }
    axis = power_axis(np.stack([of[activation, "entries"][:, :, 0] for activation in ACTIVATIONS]))
    for j, (activation, name) in enumerate(ACTIVATIONS.items()):
        look_of = PALETTE[j], name, SYMBOLS[j]
        if activation != "maxout":
            add_band(figure, 0, plan.biases, of[activation, "slope"], *look_of, False)
        add_band(figure, 1, plan.biases, 100 * of[activation, "dead"], *look_of, True)
        front = of[activation, "entries"][:, :, 0]
        add_band(figure, 2, plan.biases, np.where(front > 0, front, axis["tickvals"][0]), *look_of, False)
        ends = [np.array(results[Start(activation, 1.0, bias)]["loss"])[:, -1] for bias in plan.trained]
        add_band(figure, 3, plan.trained, np.stack(ends, axis=1), *look_of, False)
    figure.update_yaxes(axis, **place(2))
    figure.update_yaxes(range=[0, 1.15 * guessing], **place(3))
    figure.add_hline(guessing, line=DOTTED, **place(3))
    figure.update_xaxes(tickangle=0, dtick=1)
    figure.update_xaxes(tickvals=plan.trained, tickmode="array", **place(3))
    figure.update_xaxes(title_text="hidden biases", row=2)
    return figure


def panels(title: str, notes: list[str], titles: list[str]) -> go.Figure:
    """Return a figure of two by two panels."""
    figure = make_subplots(2, 2, subplot_titles=titles, horizontal_spacing=0.13, vertical_spacing=0.17)
    new_figure(title, notes, figure)
    figure.update_annotations(font={"size": 15})
    figure.update_layout(margin={"t": figure.layout.margin.t + 24, "b": 80})
    return figure


def place(i: int) -> dict[str, int]:
    """Return where panel i is."""
    return {"row": i // 2 + 1, "col": i % 2 + 1}


def power_axis(shown: np.ndarray) -> dict[str, Any]:
    """Return the settings of a logarithmic axis over many decades; zeros are to be drawn at its lower end, `10**low`.

    The axis ends two ticks below the smallest positive value if there are zeros.
    """
    exponents = np.log10(shown[shown > 0])
    step = 4 if np.ptp(exponents) < 24 else 8
    low, high = step * floor(exponents.min() / step), step * ceil(exponents.max() / step)
    ticks = list(range(low, high + 1, step))
    names = [f"10<sup>{k}</sup>" for k in ticks]
    if (shown == 0).any():
        ticks, names = [low - step, *ticks], ["0", *names]
    return {
        "type": "log",
        "range": [ticks[0] - 0.5, ticks[-1] + 0.5],
        "tickvals": [10.0**k for k in ticks],
        "ticktext": names,
    }


def add_band(
    figure: go.Figure, i: int, x: Sequence[Any], y: np.ndarray, color: str, name: str, symbol: str, in_legend: bool
) -> None:
    """Add the median over the seeds `[seeds, m]` and the range of all of them to panel i."""
    low, high = y.min(axis=0), y.max(axis=0)
    shared = {"legendgroup": name, "name": name}
    figure.add_trace(
        go.Scatter(
            x=[*x, *x[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=color,
            opacity=0.22,
            line={"width": 0},
            mode="lines",
            showlegend=False,
            hoverinfo="skip",
            **shared,
        ),
        **place(i),
    )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=np.median(y, axis=0),
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"symbol": symbol, "size": 7},
            showlegend=in_legend,
            hovertemplate="%{x}: %{y:.2g}<extra>%{fullData.name}</extra>",
            **shared,
        ),
        **place(i),
    )
